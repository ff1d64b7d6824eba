"""A node whose data plane sends 50 kB/s while the file that `BENCH_TRICKLE` names exists, and is an honest node else.

It runs as `python -m bench.trickling_node`; its transfer process is this module too, told by the descriptor that it gets first. What
answers on the control side is as quick as ever: a holder behind a thin line, not one that is ill.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from node.transfer import remote
from node.transfer.door import Door
from node.transfer.serving import Bytes

RATE = 50_000
EVERY = 0.1
_FILE = "BENCH_TRICKLE"
_honest_send = Door.send
_honest_environment = remote.child_environment
_honest_spawn = asyncio.create_subprocess_exec


def trickles() -> bool:
    return os.path.exists(os.environ[_FILE])


async def send(self: Door, data: Bytes) -> None:
    view = memoryview(data)
    while view and trickles():
        step = int(RATE * EVERY)
        await _honest_send(self, view[:step])
        self._flush()
        view = view[step:]
        await asyncio.sleep(EVERY)
    await _honest_send(self, view)


def environment() -> dict[str, str]:
    return {**_honest_environment(), _FILE: os.environ[_FILE]}


async def spawn(*command: Any, **options: Any) -> asyncio.subprocess.Process:
    return await _honest_spawn(*("bench.trickling_node" if word == "node.transfer.process" else word for word in command), **options)


def as_node() -> None:
    from node.__main__ import main

    remote.child_environment = environment
    asyncio.create_subprocess_exec = spawn
    main()


def as_transfer_process() -> None:
    from node.transfer.process import main

    Door.send = send  # type: ignore[method-assign]
    main()


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].isdigit():
        as_transfer_process()
    else:
        as_node()
