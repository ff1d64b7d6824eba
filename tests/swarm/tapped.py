"""An honest node that keeps every byte it is sent over libp2p, decrypted, in the file that `TAP` names: what its owner could have seen.

It runs as `python -m tests.swarm.tapped`. Shards come another way, and lie in its store as they came.
"""

from __future__ import annotations

import os

from node.__main__ import main
from node.network.streams import FrameStream

_receive, _fed = FrameStream.receive, FrameStream.fed


def _keep(data: bytes) -> None:
    with open(os.environ["TAP"], "ab") as tap:
        tap.write(data)


async def receive(self: FrameStream, timeout: float) -> bytes:
    frame = await _receive(self, timeout)
    _keep(frame)
    return frame


def fed(self: FrameStream, data: bytes) -> None:
    _keep(bytes(data))
    _fed(self, data)


FrameStream.receive = receive  # type: ignore[method-assign]
FrameStream.fed = fed  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
