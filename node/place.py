"""Finds a home for the shards of a group: one node each, domains apart while they suffice, refusals replaced by the next best."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from erasure.audit import HeldShard
from erasure.placement import Candidate, Placement
from node.grant_book import GrantBook
from node.locate import KnownEncoding, Located
from node.placement_view import PlacementView
from node.reuse import Reuser
from node.store.interface import ShardKey
from node.swarm.interface import Swarm
from node.tally import Tally
from node.transfer.jobs import Encoded, EncodeGroup, KeepShard, PushShard, SourceSpan
from node.transfer.remote import Transfer
from protocol.errors import MfError
from protocol.ids import EncodingId, PeerId, encoding_text

log = logging.getLogger(__name__)
OnShard = Callable[[], Awaitable[None]]
_SWEEP_AFTER = (0.5, 1.0, 2.0)
"""Seconds after work was stopped, one after the other."""


class Source(Protocol):
    """Where a group's plain bytes lie."""

    def spans(self, group: int) -> tuple[list[SourceSpan], list[int]]:
        """Spans in order, numbering the descriptors beside them, which stay the source's to close."""

    def element(self, group: int) -> int:
        """Bytes of the group's commonest element."""

    def check(self) -> None:
        """`BadInput` when the bytes may have changed since the manifest was made of them."""


class Placer:
    def __init__(self, view: PlacementView, swarm: Swarm, transfer: Transfer, grants: GrantBook, reuser: Reuser) -> None:
        self._view = view
        self._swarm = swarm
        self._transfer = transfer
        self._grants = grants
        self._reuser = reuser
        self._placing = 0
        self._sweeping: set[asyncio.Task[None]] = set()
        self._again: asyncio.Task[None] | None = None

    @property
    def me(self) -> PeerId:
        return PeerId(self._view.me.peer)

    def candidates(self) -> list[Candidate]:
        """This node and every routable peer that lends storage and isn't banned."""
        return self._view.candidates()

    def placement(self) -> Placement:
        """The policy over everybody known now."""
        return self._view.placement()

    def bearing(self) -> int:
        """How many nodes may hold a shard of one group now."""
        return self._view.bearing()

    def domains(self) -> dict[str, str]:
        """The failure domain of this node and of every peer known, lending or not."""
        return self._view.domains()

    async def place_group(self, located: Located, group: int, source: Source, compression: str, tally: Tally, on_shard: OnShard) -> None:
        """Codes the group unless an encoding to reuse already lies at enough holders, then pushes what is missing."""
        known = await self._reuser.find(located, group, tally)
        if known is not None:
            await self._keep_known(located, known)
            await on_shard()
            if len(tally.durable[group]) >= tally.n:
                return
        self._placing += 1
        try:
            life = self._transfer.life
            try:
                await self._code_and_put(located, group, source, compression, known, tally, on_shard)
            except MfError as error:
                if self._transfer.alive(life):
                    raise
                log.warning("group %d is coded again: %s", group, error)
            if not self._transfer.alive(life) and len(tally.durable.get(group, ())) < tally.n:
                # What was staged went with it; what is durable stays, and the same encoding comes out again.
                known = next((one for one in located.encodings.get(group, ()) if one.signer == self.me), known)
                await self._code_and_put(located, group, source, compression, known, tally, on_shard)
        except asyncio.CancelledError:
            self._sweep_again()
            raise
        finally:
            self._placing -= 1
            await self._swept()

    async def _code_and_put(
        self, located: Located, group: int, source: Source, compression: str, known: KnownEncoding | None, tally: Tally, on_shard: OnShard
    ) -> None:
        encoded = await self._encode(located, group, source, compression, known, tally)
        fresh = known
        if known is None or encoded.encoding != known.id:
            if known is not None and tally.nodes(group) >= tally.enough:
                # Its missing shards can't be made again here (another version compresses otherwise): it stays as durable as it is.
                await self._transfer.drop_staged(EncodingId(encoded.encoding))
                return
            fresh = await self._begin_anew(located, group, encoded.envelope, tally)
        assert fresh is not None
        await self._push_all(located, group, fresh, tally, on_shard)
        await self._transfer.drop_staged(fresh.id)

    def _sweep_again(self) -> None:
        """Coding that is stopped ends a moment later in its own process, and may have staged its last shards then."""

        async def again() -> None:
            for pause in _SWEEP_AFTER:
                await asyncio.sleep(pause)
                try:
                    await self._sweep()
                except MfError as error:  # the process has ended: it sweeps as it starts
                    log.debug("what is staged wasn't swept: %s", error)

        if self._again is None or self._again.done():
            self._again = asyncio.create_task(again(), name="sweep what is staged again")

    async def _keep_known(self, located: Located, known: KnownEncoding) -> None:
        await self._transfer.put_blob(known.envelope)
        await self._transfer.add_model(located.model, [located.model, *sorted(located.known_ids())])

    async def _begin_anew(self, located: Located, group: int, envelope: bytes, tally: Tally) -> KnownEncoding:
        """A fresh encoding takes the place of one found: nothing of that counts."""
        tally.reused.pop(group, None)
        tally.saved.pop(group, None)
        fresh = located.add(envelope)
        await self._keep_known(located, fresh)
        await self._reuser.count(fresh, group, tally)
        return fresh

    async def _encode(
        self, located: Located, group: int, source: Source, compression: str, known: KnownEncoding | None, tally: Tally
    ) -> Encoded:
        """The group coded and staged: again as it was where an encoding is `known`, for the shards that are missing of it."""
        spans, fds = source.spans(group)
        entry = located.coded[group]
        job = EncodeGroup(
            model=located.model,
            group=group,
            group_id=entry.id,
            length=entry.length,
            spans=spans,
            k=tally.k,
            n=tally.n,
            compression=compression if known is None else known.record.compression,
            element=source.element(group),
            n_max=tally.n_max if known is None else len(known.record.roots),
            secret=located.secret,
            like=None if known is None else known.envelope,
        )
        encoded = await self._transfer.encode_group(job, fds)
        source.check()
        return encoded

    @contextmanager
    def staging(self) -> Iterator[None]:
        """While it lasts nothing that is staged is swept away."""
        self._placing += 1
        try:
            yield
        finally:
            self._placing -= 1

    async def _swept(self) -> None:
        """To its end whatever comes: who is stopped twice (its client leaves, its command ends) would leave what is staged lying."""
        sweeping = asyncio.create_task(self._sweep(), name="sweep of the staging folder")
        self._sweeping.add(sweeping)
        sweeping.add_done_callback(self._sweeping.discard)
        await asyncio.shield(sweeping)

    async def _sweep(self) -> None:
        """What is staged while nothing is being placed belongs to work that was stopped, at whatever moment."""
        staged = [] if self._placing else await self._transfer.list_staged()
        for encoding in staged:
            await self._transfer.drop_staged(encoding)

    async def _push_all(self, located: Located, group: int, known: KnownEncoding, tally: Tally, on_shard: OnShard) -> None:
        held = tally.durable[group]
        refused: set[PeerId] = set()
        while len(held) < tally.n:
            placement = self._view.placement()
            pairs = placement.choose(known.record.group, tally.n, k=tally.k, model=located.model, held=held, without=refused)
            if not pairs:
                return
            jobs = [(shard, PeerId(peer)) for shard, peer in pairs]
            tally.asked |= {(peer, known.id, shard) for shard, peer in jobs}

            async def put(shard: int, peer: PeerId) -> None:
                """Counted as it ends: a slow one must not hide that enough of the others are durable."""
                refusal = await self._put(located, group, known, shard, peer)
                if refusal is None:
                    held[shard] = peer
                    await on_shard()
                else:
                    refused.add(peer)
                    tally.refusals[peer] = refusal

            await asyncio.gather(*(put(shard, peer) for shard, peer in jobs))

    async def _put(self, located: Located, group: int, known: KnownEncoding, shard: int, peer: PeerId) -> str | None:
        """None once the shard is durable there; else why not."""
        try:
            if peer == self.me:
                await self._transfer.keep_shard(KeepShard(encoding=known.id, shard=shard, model=located.model, group=group))
                return None
            reply = await self._grants.to_put(peer, known.id, known.envelope, shard, located.model)
            job = PushShard(encoding=known.id, shard=shard, peer=peer, urls=reply.urls, tls=reply.tls, grant=reply.grant)
            await self._transfer.push_shard(job)
            self._swarm.vouch(HeldShard(peer, known.id, shard))
        except MfError as error:
            log.warning(
                "%s took no shard of %s: %s",
                peer,
                encoding_text(known.id),
                error,
                extra={"event": "put_refused", "fields": {"peer": peer, "reason": error.message}},
            )
            return error.message
        return None

    async def take_back(self, located: Located, tally: Tally, published: bool) -> None:
        """After a failed publish nothing of it stays, here and at peers; what an earlier one made durable does, if it was `published`.

        What others put here of the same model stays too.
        """
        drops = set(tally.asked) | (set() if published else self._left_over(located))
        await asyncio.gather(*(self._drop(*drop) for drop in drops))
        lying = await self._transfer.list_shards(located.model)
        if not published and all(info.owner == self.me or info.key.encoding in located.also for info in lying):
            await self._transfer.forget(located.model)

    def _left_over(self, located: Located) -> set[tuple[PeerId, EncodingId, int]]:
        """What an interrupted publish left of own encodings, announced for this very model."""
        own = {known.id for entries in located.encodings.values() for known in entries if known.signer == self.me} - located.also.keys()
        return {
            (view.peer, EncodingId(held.encoding), shard)
            for view in self._swarm.holdings(located.model)
            for held in view.held
            if held.encoding in own
            for shard in held.shards
        }

    async def _drop(self, peer: PeerId, encoding: EncodingId, shard: int) -> None:
        try:
            if peer == self.me:
                await self._transfer.take_back(ShardKey(encoding, shard), peer)
            else:
                await self._grants.to_drop(peer, encoding, shard)
        except MfError as error:
            log.info("%s didn't drop a shard of %s: %s", peer, encoding_text(encoding), error)
