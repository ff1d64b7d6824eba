"""Finds a home for the shards of a group: one node each, domains apart while they suffice, refusals replaced by the next best."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from erasure.placement import Candidate, domain_of, place
from node.grant_book import GrantBook
from node.locate import KnownEncoding, Located
from node.store.interface import ShardKey
from node.swarm.interface import PeerView, Swarm
from node.tally import Tally
from node.transfer.jobs import EncodeGroup, KeepShard, PushShard, SourceSpan
from node.transfer.remote import Transfer
from protocol.errors import MfError
from protocol.ids import EncodingId, PeerId, encoding_text
from protocol.manifest import Manifest

log = logging.getLogger(__name__)
OnShard = Callable[[], Awaitable[None]]
_WIDTH = {"BF16": 2, "F16": 2, "F32": 4}


class Source(Protocol):
    """Where a group's plain bytes lie."""

    def spans(self, group: int) -> tuple[list[SourceSpan], list[int]]:
        """Spans in order, numbering the descriptors beside them, which stay the source's to close."""

    def check(self) -> None:
        """`BadInput` when the bytes may have changed since the manifest was made of them."""


class Placer:
    def __init__(self, me: Candidate, swarm: Swarm, transfer: Transfer, grants: GrantBook) -> None:
        self._me = me
        self._swarm = swarm
        self._transfer = transfer
        self._grants = grants
        self._placing = 0

    @property
    def me(self) -> PeerId:
        return PeerId(self._me.peer)

    def candidates(self) -> list[Candidate]:
        """This node and every routable peer that lends storage and isn't banned."""
        peers = [candidate_of(view) for view in self._swarm.peers() if self._usable(view)]
        return [self._me, *peers]

    def _usable(self, view: PeerView) -> bool:
        lends = view.record is not None and view.record.lend in ("storage", "both")
        return lends and view.routable and view.peer != self._me.peer and not self._swarm.banned(view.peer)

    async def place_group(self, located: Located, group: int, source: Source, compression: str, tally: Tally, on_shard: OnShard) -> None:
        """Codes the group unless an own encoding already lies at enough holders, then pushes what is missing."""
        held = self._already(located, group, tally)
        tally.durable[group] = held
        if len(held) >= tally.n:
            await on_shard()
            return
        spans, fds = source.spans(group)
        entry = located.manifest.groups[group]
        job = EncodeGroup(
            model=located.model,
            group=group,
            group_id=entry.id,
            length=entry.length,
            spans=spans,
            k=tally.k,
            n=tally.n,
            compression=compression,
            element=element_width(located.manifest, group),
        )
        self._placing += 1
        try:
            encoded = await self._transfer.encode_group(job, fds)
            source.check()
            await self._transfer.put_blob(encoded.envelope)
            known = located.add(encoded.envelope)
            await self._transfer.add_model(located.model, [located.model, *sorted(located.known_ids())])
            if known.id not in self._ids_held(located, group):
                held.clear()
            await self._push_all(located, group, known, tally, on_shard)
            await self._transfer.drop_staged(known.id)
        finally:
            self._placing -= 1
            await self._sweep()

    async def _sweep(self) -> None:
        """What is staged while nothing is being placed belongs to work that was stopped, at whatever moment."""
        staged = [] if self._placing else await self._transfer.list_staged()
        for encoding in staged:
            await self._transfer.drop_staged(encoding)

    def _ids_held(self, located: Located, group: int) -> set[bytes]:
        views = self._swarm.holdings(located.model)
        return {held.encoding for view in views for held in view.held if held.group == group}

    def _already(self, located: Located, group: int, tally: Tally) -> dict[int, PeerId]:
        """Shards of an own encoding with this k and n that reachable holders announce: one node each."""
        for known in located.encodings.get(group, []):
            if known.signer == self._me.peer and (known.record.k, known.record.n) == (tally.k, tally.n):
                found: dict[int, PeerId] = {}
                for shard, peers in sorted(self._swarm.holders(known.id).items()):
                    free = [peer for peer in peers if peer not in found.values()]
                    if free and shard < tally.n:
                        found[shard] = free[0]
                return found
        return {}

    async def _push_all(self, located: Located, group: int, known: KnownEncoding, tally: Tally, on_shard: OnShard) -> None:
        held = tally.durable[group]
        refused: set[PeerId] = set()
        while len(held) < tally.n:
            missing = [shard for shard in range(tally.n) if shard not in held]
            free = [candidate for candidate in self.candidates() if candidate.peer not in refused | set(held.values())]
            if not free:
                return
            taken = self._domains(held)
            apart = [candidate for candidate in free if candidate.domain not in taken]
            pairs = place(known.record.group, len(missing), apart or free)
            jobs = [(shard, peer) for shard, (_index, peer) in zip(missing, pairs, strict=False)]
            tally.asked |= {(PeerId(peer), known.id, shard) for shard, peer in jobs}
            results = await asyncio.gather(*(self._put(located, group, known, shard, PeerId(peer)) for shard, peer in jobs))
            for (shard, peer), refusal in zip(jobs, results, strict=True):
                if refusal is None:
                    held[shard] = PeerId(peer)
                    tally.stored_bytes += known.record.shard_length()
                    await on_shard()
                else:
                    refused.add(PeerId(peer))
                    tally.refusals[peer] = refusal

    def _domains(self, held: dict[int, PeerId]) -> set[str]:
        domains = {candidate.peer: candidate.domain for candidate in self.candidates()}
        return {domains[peer] for peer in held.values() if peer in domains}

    async def _put(self, located: Located, group: int, known: KnownEncoding, shard: int, peer: PeerId) -> str | None:
        """None once the shard is durable there; else why not."""
        try:
            if peer == self._me.peer:
                await self._transfer.keep_shard(KeepShard(encoding=known.id, shard=shard, model=located.model, group=group))
                return None
            reply = await self._grants.to_put(peer, known.id, known.envelope, shard, located.model)
            job = PushShard(encoding=known.id, shard=shard, peer=peer, urls=reply.urls, tls=reply.tls, grant=reply.grant)
            await self._transfer.push_shard(job)
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
        """After a failed publish nothing of it stays, here and at peers; what an earlier one made durable does, if it was `published`."""
        drops = set(tally.asked)
        if not published:
            drops |= {
                (peer, known.id, shard)
                for group, held in tally.durable.items()
                for shard, peer in held.items()
                for known in located.encodings.get(group, [])
                if known.signer == self._me.peer
            }
        await asyncio.gather(*(self._drop(*drop) for drop in drops))
        if not published:
            await self._transfer.forget(located.model)

    async def _drop(self, peer: PeerId, encoding: EncodingId, shard: int) -> None:
        try:
            if peer == self._me.peer:
                await self._transfer.take_back(ShardKey(encoding, shard), peer)
            else:
                await self._grants.to_drop(peer, encoding, shard)
        except MfError as error:
            log.info("%s didn't drop a shard of %s: %s", peer, encoding_text(encoding), error)


def candidate_of(view: PeerView) -> Candidate:
    """A peer as the placement policy sees it."""
    record = view.record
    return Candidate(
        peer=view.peer,
        domain=domain_of(view.peer, ip_addresses(view.addresses), record.machine if record else None),
        weight=float((record.storage_free or 0) if record else 0),
        operator=record.operator if record else None,
    )


def ip_addresses(multiaddrs: Sequence[str]) -> list[str]:
    """The IP address of each /ip4/… or /ip6/… multiaddr."""
    split = [address.split("/") for address in multiaddrs]
    return [words[2] for words in split if len(words) > 2 and words[1] in ("ip4", "ip6")]


def element_width(manifest: Manifest, group: int) -> int:
    """Bytes of the commonest element in a group (by bytes), for the byte planes; 1 where planes make no sense."""
    weight: dict[int, int] = {1: 0}
    for tensor in manifest.tensors:
        for cut in tensor.cuts:
            if cut.group == group:
                width = _WIDTH.get(tensor.dtype, 1)
                weight[width] = weight.get(width, 0) + cut.length
    return max(weight, key=lambda width: weight[width])
