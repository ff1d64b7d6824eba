"""Tells the swarm what lies here: one Holding per model, made anew from the store whenever something was stored or dropped.

Changes come in bursts (a publish puts a shard per group), so they are gathered for a moment and told once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from node.locate import Locator
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol import limits
from protocol.errors import MfError
from protocol.ids import ModelId, model_text
from protocol.records import Held, Repairing

log = logging.getLogger(__name__)
GATHER = 0.2
AGAIN = 2.0
"""Seconds before what couldn't be told is tried again."""


class HoldingKeeper:
    def __init__(self, swarm: Swarm, transfer: Transfer, locator: Locator) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._changed: set[ModelId] = set()
        self._wake = asyncio.Event()
        self._repairs: dict[ModelId, dict[bytes, int]] = {}

    def changed(self, model: ModelId) -> None:
        """Something of this model was stored or dropped here."""
        self._changed.add(model)
        self._wake.set()

    def repairing(self, model: ModelId, encoding: bytes, expires: int) -> None:
        """Tells that this node makes missing shards of the encoding anew until `expires` (Unix seconds); in the past: no more."""
        claims = self._repairs.setdefault(model, {})
        claims[encoding] = expires
        now = time.time()
        self._repairs[model] = {name: until for name, until in claims.items() if until > now or name == encoding}
        self.changed(model)

    async def run(self) -> None:
        """Tells what lies here at start, then each change; ends when cancelled."""
        for model in {shard.model for shard in await self._transfer.list_shards()}:
            self.changed(model)
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER)
            self._wake.clear()
            models, self._changed = self._changed, set()
            if untold := await self.tell(models):
                await asyncio.sleep(AGAIN)
                for model in untold:
                    self.changed(model)

    async def tell(self, models: Iterable[ModelId]) -> list[ModelId]:
        """Those it couldn't tell of: the store was away, or the swarm's book is full."""
        untold = []
        for model in models:
            try:
                await self._swarm.put_holding(model, await self._held(model), [], self._claims(model))
            except MfError as error:
                untold.append(model)
                log.warning("the holding of %s was not spread: %s", model_text(model), error)
        return untold

    def _claims(self, model: ModelId) -> list[Repairing]:
        """The latest of those that still hold; one that is over goes with them once, so that it isn't believed to hold."""
        claims = sorted(self._repairs.get(model, {}).items(), key=lambda claim: -claim[1])
        return [Repairing(encoding, expires) for encoding, expires in claims[: limits.MAX_REPAIRS]]

    async def _held(self, model: ModelId) -> list[Held]:
        shards: dict[tuple[int, bytes], list[int]] = {}
        for info in await self._transfer.list_shards(model):
            shards.setdefault((info.group, info.key.encoding), []).append(info.key.shard)
        return [Held(group, encoding, sorted(numbers)) for (group, encoding), numbers in sorted(shards.items())]
