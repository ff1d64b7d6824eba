"""A pair of streams inside one process, so that an own stage is served by the code that serves a peer's."""

from __future__ import annotations

import asyncio

from node.network.interface import StreamClosed
from protocol.errors import DeadlineExceeded
from protocol.ids import PeerId

_DEPTH = 256


class LocalStream:
    """One end; what it sends the other receives."""

    def __init__(self, peer: PeerId, protocol: str) -> None:
        self.peer = peer
        self.protocol = protocol
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue(_DEPTH)
        self._other: LocalStream = self
        self._ended = False

    async def send(self, frame: bytes, timeout: float = 5.0) -> None:
        if self._ended or self._other._ended:
            raise StreamClosed("the session is over")
        try:
            async with asyncio.timeout(timeout):
                await self._other._inbox.put(frame)
        except TimeoutError:
            raise DeadlineExceeded(f"this node's own stage took nothing within {timeout} s") from None

    async def receive(self, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                frame = await self._inbox.get()
        except TimeoutError:
            raise DeadlineExceeded(f"nothing from this node's own stage within {timeout} s") from None
        if frame is None:
            self._inbox.put_nowait(None)
            raise StreamClosed("the session is over")
        return frame

    async def close(self) -> None:
        self.reset()

    def reset(self) -> None:
        for end in (self, self._other):
            if not end._ended:
                end._ended = True
                if end._inbox.full():
                    end._inbox.get_nowait()
                end._inbox.put_nowait(None)


def stream_pair(peer: PeerId, protocol: str) -> tuple[LocalStream, LocalStream]:
    one, other = LocalStream(peer, protocol), LocalStream(peer, protocol)
    one._other, other._other = other, one
    return one, other
