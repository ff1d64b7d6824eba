"""Passes news on: collected for 50 ms, then to at most 12 random connected peers, never back to whom it came from."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from node.swarm.exchange import Exchange
from node.swarm.link import Link
from protocol.errors import MfError
from protocol.ids import PeerId

log = logging.getLogger(__name__)
FANOUT = 12
GATHER = 0.05
MAX_PENDING = 8_192


class Spread:
    def __init__(self, exchange: Exchange, links: Callable[[], list[Link]], rng: random.Random) -> None:
        self._exchange = exchange
        self._links = links
        self._rng = rng
        self._pending: dict[bytes, PeerId | None] = {}
        self._some = asyncio.Event()

    def add(self, mark: bytes, origin: PeerId | None) -> None:
        """A record to pass on; what doesn't fit is left to the comparison of archives."""
        if len(self._pending) < MAX_PENDING:
            self._pending[mark] = origin
            self._some.set()

    async def run(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(GATHER)
            self._some.clear()
            pending, self._pending = self._pending, {}
            links = self._links()
            for link in self._rng.sample(links, min(FANOUT, len(links))):
                try:
                    self._exchange.push(link, [mark for mark, origin in pending.items() if origin != link.peer])
                except MfError as error:
                    log.debug("push to %s: %s", link.peer, error)
