"""Widen: what was published when the swarm was smaller spreads as others come.

A single node keeps everything (k = 1, n = 1); with others there, the publisher's node codes its models anew with the k and n
the swarm now bears, from the shards that lie there: no file of the publisher's is needed. The wider encoding is announced
first, the narrow one's shard here is dropped once every group of the model has the wide one. Only the publisher's own node
does it, after the number of nodes that lend storage has stood still for a while: nodes that come in a row cause one coding.
"""

from __future__ import annotations

import asyncio
import logging
import time

from erasure.durability import Choice, choose_k_n
from node.assemble import Assembler, GroupBytes
from node.keep_holdings import HoldingKeeper
from node.locate import Located, Locator
from node.place import Placer
from node.reuse import Reuser
from node.source import element_widths
from node.store.interface import ShardKey
from node.swarm.interface import Swarm
from node.tally import Tally
from node.transfer.jobs import SourceSpan
from node.transfer.remote import Transfer
from protocol.errors import MfError
from protocol.ids import ModelId, PeerId, model_text

log = logging.getLogger(__name__)
EVERY = 2.0
STEADY = 6.0
"""Seconds without a change in the number of nodes before anything is coded anew."""


class AssembledSource:
    """One group's plain bytes, assembled from shards, as a source to code from."""

    def __init__(self, group: GroupBytes, element: int) -> None:
        self._group = group
        self._element = element

    def spans(self, group: int) -> tuple[list[SourceSpan], list[int]]:
        return [SourceSpan(0, 0, self._group.length)], [self._group.fd]

    def element(self, group: int) -> int:
        return self._element

    def check(self) -> None:
        """An assembled group was verified, and nobody else writes to it."""


class Widener:
    def __init__(
        self,
        me: PeerId,
        swarm: Swarm,
        transfer: Transfer,
        locator: Locator,
        assembler: Assembler,
        placer: Placer,
        reuser: Reuser,
        keeper: HoldingKeeper,
    ) -> None:
        self._me = me
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._assembler = assembler
        self._placer = placer
        self._reuser = reuser
        self._keeper = keeper
        self._seen = 0
        self._since = time.monotonic()

    async def run(self) -> None:
        """Looks every EVERY seconds; ends when cancelled. A fault of one round is logged, the next tries again."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.round()
            except MfError as error:
                log.info("a model couldn't be spread now: %s", error)

    async def round(self) -> None:
        nodes = self._placer.bearing()
        if nodes != self._seen:
            self._seen, self._since = nodes, time.monotonic()
        if time.monotonic() - self._since < STEADY:
            return
        choice = choose_k_n(nodes)
        mine = [view.card.model for view in self._swarm.cards_of(self._me)]
        for model in [*mine, *(view.record.model for view in self._swarm.readers() if view.publisher == self._me)]:
            await self._widen(ModelId(model), choice)

    async def _widen(self, model: ModelId, choice: Choice) -> None:
        located = await self._locator.located_here(model)
        if located is None:
            return
        groups = [group for group in range(len(located.manifest.groups)) if self._narrow(located, group, choice)]
        if not groups:
            return
        log.info("spreading %s: %s", model_text(model), choice.words, extra={"event": "widening", "fields": {"model": model_text(model)}})
        widths = element_widths(located.manifest)
        if located.cover is None:
            await self._reuser.gather(located)
        for group in groups:
            await self._widen_group(located, group, widths[group], choice)
        await self._drop_narrow(located, choice)
        log.info("spread", extra={"event": "widened", "fields": {"model": model_text(model), "k": choice.k, "n": choice.n}})

    def _narrow(self, located: Located, group: int, choice: Choice) -> bool:
        """An own encoding here, chosen for fewer nodes, and none as wide as the swarm bears now."""
        mine = [known.record for known in located.encodings.get(group, []) if known.signer == self._me]
        return bool(mine) and all(record.n < choice.n and record.n <= 2 for record in mine)

    async def _widen_group(self, located: Located, group: int, element: int, choice: Choice) -> None:
        tally = Tally(choice.k, choice.n)
        assembled = await self._assembler.group(located, group)

        async def nothing() -> None:
            """Nobody waits for progress here."""

        try:
            await self._placer.place_group(located, group, AssembledSource(assembled, element), "auto", tally, nothing)
        finally:
            assembled.close()
        if tally.least() < tally.enough:
            raise MfError(f"only {tally.least()} of {choice.n} shards of a group found a home", details={"refusals": tally.refusals})
        await self._reuser.tell(located, tally)

    async def _drop_narrow(self, located: Located, choice: Choice) -> None:
        """The narrow encodings' shards here, now that every group has a wide one; those that another model still needs stay."""
        known_here = [known for entries in located.encodings.values() for known in entries]
        narrow = {known.id for known in known_here if known.signer == self._me and known.record.n < choice.n}
        await self._transfer.add_model(located.model, [located.model, *sorted(located.known_ids() - narrow)])
        lists = (await self._transfer.models()).items()
        needed = {blob for model, blobs in lists if model != located.model for blob in blobs}
        for info in await self._transfer.list_shards(located.model):
            if info.key.encoding in narrow - needed:
                await self._transfer.drop_shard(ShardKey(info.key.encoding, info.key.shard), "replaced by a wider encoding")
        for entries in located.encodings.values():
            entries[:] = [known for known in entries if known.id not in narrow]
        self._keeper.changed(located.model)
