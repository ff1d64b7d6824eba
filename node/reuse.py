"""Equal groups stored once: an encoding that lies in the swarm for any model is looked for before a group is coded again.

Versions of a model mostly share their layers, fine-tunings their embeddings. A group's id is that of its tensors, so an encoding of
an equal group is as good as one made now: its shards needn't be coded, sent or stored a second time. The holders are
told that their shards belong to the new model too (`tell`): they then announce them for both and keep them while either needs them.

What is trusted: an own encoding was made here, so its holders' word that they have the shards is enough. Anybody else's is
assembled once and compared with the manifest, which was made of the tensors at hand, and only taken when enough of its shards (r) are
confirmed to be durable; one that decodes to other bytes blames its signer, and the group is coded anew.

Where to look: the models that lie here, and those whose card says the same kind and width, newest first. Not every manifest in the
swarm: they have up to 64 MiB, and models of another shape share nothing but, sometimes, a licence file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from node.assemble import Assembler
from node.grant_book import GrantBook
from node.locate import KnownEncoding, Located, Locator
from node.store.interface import ShardKey
from node.swarm.interface import Swarm
from node.tally import Tally
from node.transfer.remote import Transfer
from protocol import limits
from protocol.errors import MfError
from protocol.ids import EncodingId, ModelId, PeerId, encoding_text, model_text
from protocol.manifest import Summary
from protocol.messages import GrantAsk

log = logging.getLogger(__name__)
MOST_MODELS = 32
LOOK_WITHIN = 15.0
"""Seconds for looking at other models: what isn't found by then is coded again."""


class Reuser:
    def __init__(self, me: PeerId, swarm: Swarm, transfer: Transfer, grants: GrantBook, locator: Locator, assembler: Assembler) -> None:
        self._me, self._swarm, self._transfer, self._grants = me, swarm, transfer, grants
        self._locator, self._assembler = locator, assembler
        self._compared: set[EncodingId] = set()

    async def gather(self, located: Located) -> None:
        """Adds to `located` the encodings of equal groups that other models have, noting in `also` which models."""
        wanted = {(group.id, group.length) for group in located.manifest.groups}
        try:
            async with asyncio.timeout(LOOK_WITHIN):
                for model in await self._alike(located):
                    await self._look(located, model, wanted)
        except TimeoutError:
            log.info("looking for equal groups took over %s s and was ended", LOOK_WITHIN)

    async def _alike(self, located: Located) -> list[ModelId]:
        cards = sorted(self._swarm.cards(), key=lambda view: view.card.created, reverse=True)
        kinds = {ModelId(view.card.model): _kind(view.card.summary) for view in cards}
        here = [*await self._transfer.models(), *(info.model for info in await self._transfer.list_shards())]
        mine = _kind(located.manifest.summary)
        found = [model for model in dict.fromkeys([*kinds, *here]) if kinds.get(model, mine) == mine and model != located.model]
        return [model for model in found if model in here or self._swarm.holdings(model)][:MOST_MODELS]

    async def _look(self, located: Located, model: ModelId, wanted: set[tuple[bytes, int]]) -> None:
        try:
            other = await self._locator.locate(model, keep=False)
        except MfError as error:
            log.info("%s wasn't looked at for equal groups: %s", model_text(model), error)
            return
        for known in [known for entries in other.encodings.values() for known in entries]:
            if (known.record.group, known.record.length) in wanted and known.id not in other.blamed:
                located.add(known.envelope)
                located.also.setdefault(known.id, set()).add(model)

    async def find(self, located: Located, group: int, tally: Tally) -> KnownEncoding | None:
        """An encoding with this k and n to go on with, its confirmed shards noted in `tally`: an own one however few they are."""
        usable = [known for known in located.encodings.get(group, []) if _fits(known, tally) and known.id not in located.blamed]
        usable.sort(key=lambda known: (len(self._swarm.holders(known.id)), known.id), reverse=True)
        own = next((known for known in usable if known.signer == self._me), None)
        if own is not None and await self.count(own, group, tally) >= tally.enough:
            return self._taken(located, own, group, tally)
        for known in usable:
            if known.signer != self._me and await self._good(located, known, group, tally):
                return self._taken(located, known, group, tally)
        tally.durable.setdefault(group, {}).clear()
        if own is not None:
            await self.count(own, group, tally)
            return self._taken(located, own, group, tally)
        return None

    async def _good(self, located: Located, known: KnownEncoding, group: int, tally: Tally) -> bool:
        if len(self._swarm.holders(known.id)) < tally.enough or await self.count(known, group, tally) < tally.enough:
            return False
        if known.id not in self._compared:
            try:
                (await self._assembler.only(located, group, known)).close()
            except MfError as error:
                log.info("an encoding by %s isn't reused: %s", known.signer, error)
                return False
            self._compared.add(known.id)
        return True

    def _taken(self, located: Located, known: KnownEncoding, group: int, tally: Tally) -> KnownEncoding:
        if known.id in located.also:
            tally.reused[group] = known.id
        if known.id in located.also or known.signer != self._me:
            tally.saved[group] = known.record.shard_length() * len(tally.durable[group])
        return known

    async def count(self, known: KnownEncoding, group: int, tally: Tally) -> int:
        """Notes in `tally` the shards of this encoding that announced holders confirm to have, one node each; on how many nodes."""
        announced: dict[int, PeerId] = {}
        for shard, peers in sorted(self._swarm.holders(known.id).items()):
            free = [peer for peer in peers if peer not in announced.values()]
            if free and shard < tally.n:
                announced[shard] = free[0]
        there = await asyncio.gather(*(self._lies_at(peer, known.id, shard) for shard, peer in announced.items()))
        held = tally.durable.setdefault(group, {})
        held.clear()
        held.update(entry for entry, lies in zip(announced.items(), there, strict=True) if lies)
        tally.shard_bytes[group] = known.record.shard_length()
        return tally.nodes(group)

    async def _lies_at(self, peer: PeerId, encoding: EncodingId, shard: int) -> bool:
        """An announcement may be older than a loss: the holder itself is asked."""
        if peer == self._me:
            return await self._transfer.has_shard(ShardKey(encoding, shard))
        try:
            return shard in await self._grants.held(peer, encoding, [shard])
        except MfError as error:
            log.info("%s doesn't confirm shard %d of %s: %s", peer, shard, encoding_text(encoding), error)
            return False

    async def tell(self, located: Located, tally: Tally) -> None:
        """Tells every holder of a reused encoding which models its shards belong to. Who refuses doesn't count as its holder any more."""
        for peer, asks in self._asks(tally).items():
            models = {located.model, *(model for ask in asks for model in located.also[EncodingId(ask.encoding)])}
            for model in sorted(models, key=lambda model: model != located.model):
                theirs = [ask for ask in asks if model == located.model or model in located.also[EncodingId(ask.encoding)]]
                await self._tell_one(peer, model, theirs, located, tally)

    def _asks(self, tally: Tally) -> Mapping[PeerId, list[GrantAsk]]:
        asks: dict[PeerId, dict[EncodingId, list[int]]] = {}
        for group, encoding in tally.reused.items():
            for shard, peer in tally.durable[group].items():
                asks.setdefault(peer, {}).setdefault(encoding, []).append(shard)
        return {peer: [GrantAsk(encoding, sorted(set(shards))) for encoding, shards in own.items()] for peer, own in asks.items()}

    async def _tell_one(self, peer: PeerId, model: ModelId, asks: list[GrantAsk], located: Located, tally: Tally) -> None:
        try:
            for at in range(0, len(asks), limits.MAX_GRANTS_ASKED):
                some = asks[at : at + limits.MAX_GRANTS_ASKED]
                if peer == self._me:
                    await self._transfer.share(model, [EncodingId(ask.encoding) for ask in some])
                else:
                    await self._grants.to_share(peer, model, some)
        except MfError as error:
            log.warning("%s doesn't keep its shards for %s too: %s", peer, model_text(model), error)
            if model == located.model:
                tally.refusals[peer] = error.message
                for group in tally.reused:
                    held = tally.durable[group]
                    for shard in [shard for shard, holder in held.items() if holder == peer]:
                        del held[shard]


def _kind(summary: Summary) -> tuple[str, int | None]:
    return summary.model_type, summary.hidden


def _fits(known: KnownEncoding, tally: Tally) -> bool:
    return (known.record.k, known.record.n) == (tally.k, tally.n) and len(known.record.roots) >= tally.n_max
