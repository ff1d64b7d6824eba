"""Request and reply over long-lived streams: one stream per (peer, protocol), one request at a time on it."""

from __future__ import annotations

import asyncio

from node.network.interface import Network, Stream, StreamClosed
from protocol.errors import DeadlineExceeded, MfError
from protocol.ids import PeerId


class StreamPool:
    """Keeps a stream open per peer and retries once on a stream that turned out stale."""

    def __init__(self, network: Network, protocol: str) -> None:
        self._network = network
        self._protocol = protocol
        self._streams: dict[PeerId, Stream] = {}
        self._locks: dict[PeerId, asyncio.Lock] = {}

    async def ask(self, peer: PeerId, frame: bytes, timeout: float) -> bytes:
        """The reply frame; `DeadlineExceeded` within `timeout` seconds, queueing included."""
        lock = self._locks.setdefault(peer, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout), lock:
                return await self._ask_once_or_again(peer, frame, timeout)
        except TimeoutError:
            # who was only queueing leaves the stream to the one using it
            raise DeadlineExceeded(f"{peer} didn't answer {self._protocol} within {timeout} s") from None

    def drop(self, peer: PeerId) -> None:
        stream = self._streams.pop(peer, None)
        if stream is not None:
            stream.reset()

    async def close(self) -> None:
        for peer in list(self._streams):
            self.drop(peer)

    async def _ask_once_or_again(self, peer: PeerId, frame: bytes, timeout: float) -> bytes:
        reused = peer in self._streams
        try:
            return await self._ask_once(peer, frame, timeout)
        except StreamClosed:
            if not reused:
                raise
            return await self._ask_once(peer, frame, timeout)

    async def _ask_once(self, peer: PeerId, frame: bytes, timeout: float) -> bytes:
        stream = self._streams.get(peer)
        if stream is None:
            stream = self._streams[peer] = await self._network.open(peer, self._protocol, timeout)
        try:
            await stream.send(frame, timeout)
            return await stream.receive(timeout)
        except (MfError, asyncio.CancelledError):
            # the reply to this request may still come: the stream is no use to the next one
            self.drop(peer)
            raise
