"""The publisher's part of a lease: once a day its node tells every holder of what it published that it is still wanted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from node.grant_book import GrantBook
from node.swarm.interface import Swarm
from protocol import limits
from protocol.errors import MfError
from protocol.ids import ModelId, PeerId
from protocol.messages import GrantAsk

log = logging.getLogger(__name__)
FIRST = 600.0
EVERY = 86_400.0


class LeaseRenewer:
    def __init__(self, me: PeerId, swarm: Swarm, grants: GrantBook) -> None:
        self._me, self._swarm, self._grants = me, swarm, grants

    async def run(self) -> None:
        """Ends when cancelled. The first round waits until holdings have come in."""
        await asyncio.sleep(FIRST)
        while True:
            await self.round()
            await asyncio.sleep(EVERY)

    async def round(self) -> None:
        """One request after the other: nobody is in a hurry. Who can't be reached is asked tomorrow; a lease bears 90 such days."""
        named = {ModelId(view.card.model) for view in self._swarm.cards_of(self._me)}
        for model in named | {ModelId(view.record.model) for view in self._swarm.readers() if view.publisher == self._me}:
            for peer, asks in self._held(model):
                try:
                    await self._grants.to_renew(peer, asks)
                except MfError as error:
                    log.info("%s didn't renew: %s", peer, error)

    def _held(self, model: ModelId) -> Iterator[tuple[PeerId, list[GrantAsk]]]:
        for view in self._swarm.holdings(model):
            asks = [GrantAsk(held.encoding, list(held.shards)) for held in view.held]
            for at in range(0, len(asks), limits.MAX_GRANTS_ASKED):
                yield view.peer, asks[at : at + limits.MAX_GRANTS_ASKED]
