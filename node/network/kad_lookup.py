"""One iterative lookup: asks ever closer nodes, several at once, and never waits for a silent one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from node.network.kad_table import K, peer_bytes, position
from node.network.kad_wire import Found, KadMessage
from protocol.ids import PeerId

ALPHA = 6
SOFT = 0.25
"""Seconds after which a silent node no longer counts among the ALPHA asked."""
HARD = 1.0
"""Seconds after which it has missed."""


class Walk:
    """`ask` gives None for a miss; `learn` picks the peers of a reply to go on with; `look` sees each reply and may `end_by`."""

    def __init__(
        self,
        place: int,
        start: Iterable[Found],
        ask: Callable[[Found], Awaitable[KadMessage | None]],
        learn: Callable[[KadMessage], list[Found]],
        look: Callable[[KadMessage, Walk], None],
    ) -> None:
        self._place = place
        self._ask, self._learn, self._look = ask, learn, look
        self._known: dict[PeerId, Found] = {}
        self._distance: dict[PeerId, int] = {}
        self._asked: set[PeerId] = set()
        self._missed: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self._running: dict[asyncio.Task[KadMessage | None], tuple[Found, float]] = {}
        self._end = 0.0
        self._add(start)

    def _add(self, found: Iterable[Found]) -> None:
        for one in found:
            if one.peer not in self._known:
                self._known[one.peer] = one
                self._distance[one.peer] = position(peer_bytes(one.peer)) ^ self._place

    def end_by(self, when: float) -> None:
        self._end = min(self._end, when)

    def closest(self, count: int) -> list[Found]:
        """Of those that answered, nearest first."""
        return [self._known[peer] for peer in sorted(self._answered, key=self._distance.__getitem__)[:count]]

    def unfinished(self) -> list[asyncio.Task[KadMessage | None]]:
        """Questions still open; they end by themselves within HARD."""
        return list(self._running)

    async def run(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self._end = loop.time() + timeout
        while loop.time() < self._end:
            self._start_some(loop.time())
            if not self._running:
                return
            await self._wait(loop.time())

    def _start_some(self, now: float) -> None:
        near = sorted(self._known.keys() - self._missed, key=self._distance.__getitem__)[:K]
        waiting = [peer for peer in near if peer not in self._asked]
        active = sum(1 for _, began in self._running.values() if now - began < SOFT)
        for peer in waiting[: max(ALPHA - active, 0)]:
            self._asked.add(peer)
            task = asyncio.ensure_future(self._ask(self._known[peer]))
            self._running[task] = (self._known[peer], now)

    async def _wait(self, now: float) -> None:
        """Until an answer, or until one asked has been silent for so long that another is asked in its place."""
        soft = min((began + SOFT for _, began in self._running.values() if began + SOFT > now), default=self._end)
        done, _ = await asyncio.wait(self._running, timeout=max(min(soft, self._end) - now, 0.001), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            found, _ = self._running.pop(task)
            reply = task.result()
            if reply is None:
                self._missed.add(found.peer)
                continue
            self._answered.add(found.peer)
            self._look(reply, self)
            self._add(self._learn(reply))
