"""Tells the swarm what lies here: one Holding per model, made anew from the store whenever something was stored or dropped.

A shard that several models share stands in the Holding of each, under the number its group has there. Groups that lie here whole beside
a shard of theirs are told as well (full holdings): who has them repairs without reading.

Changes come in bursts (a publish puts a shard per group), so they are gathered until none came for a moment, and told once: what is
told goes from every member to every other, and costs more than taking the shard.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from node.locate import Locator
from node.store.interface import ShardInfo
from node.store.keeping import by_model
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol import limits
from protocol.errors import BadInput, MfError
from protocol.ids import ModelId, model_text
from protocol.records import Held, Repairing, Serving

log = logging.getLogger(__name__)
GATHER = 0.2
GATHER_AT_MOST = 2.0
AGAIN = 2.0
"""Seconds before what couldn't be told is tried again."""


class HoldingKeeper:
    """`whole` gives the groups of a model that lie here whole."""

    def __init__(
        self, swarm: Swarm, transfer: Transfer, locator: Locator, whole: Callable[[ModelId], list[int]] = lambda model: []
    ) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._whole = whole
        self._changed: set[ModelId] = set()
        self._wake = asyncio.Event()
        self._repairs: dict[ModelId, dict[bytes, int]] = {}
        self._serves: dict[ModelId, list[Serving]] = {}
        self._told: dict[ModelId, list[Held]] = {}

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

    def serving(self, model: ModelId, serves: list[Serving]) -> None:
        """Tells which layers of the model this node runs for others, or is about to load; an empty list: none any more."""
        self._serves.pop(model, None)
        if serves:
            self._serves[model] = serves
        self.changed(model)

    def models(self) -> list[ModelId]:
        """Those of which shards lie here, as last told."""
        return [model for model, held in self._told.items() if held]

    async def run(self) -> None:
        """Tells what lies here at start, then each change; ends when cancelled."""
        for model in await self._lying():
            self.changed(model)
        while True:
            await self._wake.wait()
            await self._gather()
            models, self._changed = self._changed, set()
            if untold := await self.tell(models):
                await asyncio.sleep(AGAIN)
                for model in untold:
                    self.changed(model)

    async def _gather(self) -> None:
        """Until nothing changed for `GATHER` seconds, at most `GATHER_AT_MOST` in all."""
        loop = asyncio.get_running_loop()
        end = loop.time() + GATHER_AT_MOST
        with suppress(TimeoutError):
            while loop.time() < end:
                self._wake.clear()
                async with asyncio.timeout(GATHER):
                    await self._wake.wait()
        self._wake.clear()

    async def tell(self, models: Iterable[ModelId]) -> list[ModelId]:
        """Those it couldn't tell of: the store was away, or the swarm's book is full. Models that share what changed are told too."""
        asked = list(models)
        try:
            lying = await self._lying()
        except MfError as error:
            log.warning("what lies here can't be told now: %s", error)
            return asked
        also = [model for model in self._told.keys() | lying.keys() if self._told.get(model, []) != lying.get(model, [])]
        untold = []
        for model in dict.fromkeys([*asked, *sorted(also)]):
            try:
                held = lying.get(model, [])
                await self._swarm.put_holding(model, held, self._full(model, held), self._claims(model), self._serves.get(model, ()))
                self._told[model] = held
            except MfError as error:
                untold.append(model)
                log.warning("the holding of %s was not spread: %s", model_text(model), error)
        return untold

    def _full(self, model: ModelId, held: list[Held]) -> list[int]:
        """Of the groups told at all; what lies here whole only is a cache, and nobody's concern."""
        groups = {entry.group for entry in held}
        return [group for group in self._whole(model) if group in groups]

    def _claims(self, model: ModelId) -> list[Repairing]:
        """The latest of those that still hold; one that is over goes with them once, so that it isn't believed to hold."""
        claims = sorted(self._repairs.get(model, {}).items(), key=lambda claim: -claim[1])
        return [Repairing(encoding, expires) for encoding, expires in claims[: limits.MAX_REPAIRS]]

    async def _lying(self) -> dict[ModelId, list[Held]]:
        lists = await self._transfer.models()
        listed = {blob for blobs in lists.values() for blob in blobs}
        found = by_model(await self._transfer.list_shards(), lists)
        return {model: await self._held(model, infos, listed) for model, infos in found.items()}

    async def _held(self, model: ModelId, infos: list[ShardInfo], listed: set[bytes]) -> list[Held]:
        shards: dict[tuple[int, bytes], list[int]] = {}
        for info in infos:
            # The store knows a group's number in the model that a shard was put for: in others it is another.
            shared = info.key.encoding in listed
            group = await self._number(model, info) if shared else info.group
            shards.setdefault((group, info.key.encoding), []).append(info.key.shard)
        return [Held(group, encoding, sorted(numbers)) for (group, encoding), numbers in sorted(shards.items())]

    async def _number(self, model: ModelId, info: ShardInfo) -> int:
        located = await self._locator.located_here(model)
        if located is None:
            return info.group
        encoding = info.key.encoding
        if encoding not in located.known_ids() and (envelope := await self._transfer.get_blob(encoding)) is not None:
            try:
                located.add(envelope)
            except BadInput as error:
                log.warning("an encoding kept for %s doesn't belong to it: %s", model_text(model), error)
        numbers = [number for number, entries in located.encodings.items() if any(known.id == encoding for known in entries)]
        return min(numbers, default=info.group)
