"""Streams kept for the next question to a peer: opening one costs more than asking on it.

A kept stream may have gone stale unseen, so a question that fails on one is asked once more on a fresh one.
Connections opened only for questions are bounded: the one asked longest ago is closed first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from node.network.interface import Network, Stream
from node.network.kad_wire import Found
from protocol.errors import DeadlineExceeded, MfError
from protocol.ids import PeerId

_PER_PEER = 2


class StreamPool:
    """`in_use(peer)`: whether others want the connection to a peer to stay."""

    def __init__(self, network: Network, protocol: str, max_connections: int, in_use: Callable[[PeerId], bool]) -> None:
        self._network = network
        self._protocol = protocol
        self._max = max_connections
        self._in_use = in_use
        self._idle: dict[PeerId, list[Stream]] = {}
        self._dialled: OrderedDict[PeerId, int] = OrderedDict()
        network.listen_peers(self._changed)

    async def ask(self, found: Found, frames: Sequence[bytes], timeout: float) -> bytes:
        """Sends the frames and returns the one reply, all within `timeout` seconds; raises what the stream raises."""
        end = asyncio.get_running_loop().time() + timeout
        kept = self._idle.get(found.peer)
        self._count(found.peer, 1)
        try:
            if kept:
                try:
                    return await self._on(kept.pop(), frames, end)
                except DeadlineExceeded:
                    raise
                except MfError:
                    self._idle.pop(found.peer, None)
            return await self._on(await self._fresh(found, end), frames, end)
        finally:
            self._count(found.peer, -1)

    async def _on(self, stream: Stream, frames: Sequence[bytes], end: float) -> bytes:
        try:
            for payload in frames:
                await stream.send(payload, _left(end))
            reply = await stream.receive(_left(end))
        except BaseException:
            stream.reset()
            raise
        idle = self._idle.setdefault(stream.peer, [])
        if len(idle) < _PER_PEER:
            idle.append(stream)
        else:
            await stream.close()
        return reply

    async def _fresh(self, found: Found, end: float) -> Stream:
        if found.peer not in self._network.connected():
            await self._make_room()
            await self._network.dial(found.peer, found.addresses, _left(end))
            self._dialled.setdefault(found.peer, 1)
        if found.peer in self._dialled:
            self._dialled.move_to_end(found.peer)
        return await self._network.open(found.peer, self._protocol, _left(end))

    def _count(self, peer: PeerId, change: int) -> None:
        if peer in self._dialled:
            self._dialled[peer] += change

    async def _make_room(self) -> None:
        """Closes the connections asked longest ago, except those in use or being asked."""
        over = len(self._dialled) - self._max + 1
        idle = [peer for peer, asking in self._dialled.items() if asking <= 0 and not self._in_use(peer)]
        for peer in idle[: max(over, 0)]:
            self._dialled.pop(peer, None)
            self._idle.pop(peer, None)
            await self._network.disconnect(peer)

    def _changed(self, peer: PeerId, connected: bool) -> None:
        if not connected:
            self._idle.pop(peer, None)
            self._dialled.pop(peer, None)

    async def close(self) -> None:
        streams = [stream for kept in self._idle.values() for stream in kept]
        self._idle.clear()
        await asyncio.gather(*(stream.close() for stream in streams))


def _left(end: float) -> float:
    return max(end - asyncio.get_running_loop().time(), 0.001)
