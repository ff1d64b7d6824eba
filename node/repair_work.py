"""One repair carried out: the missing shards made, each put at a node that has none of the group.

They are made from the group itself where it lies here whole (another version may compress it otherwise: then that gives another
encoding, and is no use), else from k shards that are read.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from erasure.audit import HeldShard
from node.also_for import tell_other_models
from node.assemble import GroupBytes
from node.grant_book import GrantBook
from node.locate import KnownEncoding, Located
from node.place import Placer
from node.store.interface import ShardKey
from node.swarm.interface import Swarm
from node.transfer.jobs import EncodeGroup, KeepShard, PushShard, RebuildShards, Source, SourceSpan
from node.transfer.remote import Transfer
from protocol.errors import MfError, Unavailable
from protocol.ids import EncodingId, PeerId, encoding_text

log = logging.getLogger(__name__)

Whole = Callable[[Located, int], Awaitable[GroupBytes | None]]


async def _nothing_whole(located: Located, group: int) -> GroupBytes | None:
    return None


@dataclass
class Restored:
    """`placed[shard]` is its new holder; bytes read and written (what went to this node's own store too)."""

    placed: dict[int, PeerId] = field(default_factory=dict)
    read: int = 0
    written: int = 0


class RepairWork:
    """Homes are chosen by the rules of erasure/placement.py, as a publish chooses them. `whole` gives a group that lies here whole."""

    def __init__(self, swarm: Swarm, transfer: Transfer, grants: GrantBook, placer: Placer, whole: Whole = _nothing_whole) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._grants = grants
        self._placer = placer
        self._whole = whole

    async def restore(
        self, located: Located, group: int, known: KnownEncoding, make: Sequence[int], holders: Mapping[int, Sequence[str]]
    ) -> Restored:
        """Makes the shards and places as many as find a home. `holders`: who has a shard or may come back with one: they get none.

        `Unavailable` where k can't be read, or nobody can take any; nothing stays staged.
        """
        done = Restored()
        with self._placer.staging():
            homes = self._homes(located, known, make, holders, set(), done)
            if not homes:
                raise Unavailable("no node that has no shard of the group can take one", hint="let more peers lend storage")
            makes = sorted(shard for shard, _ in homes)
            if not await self._coded_again(located, group, known, makes):
                job = RebuildShards(job=uuid.uuid4().hex, envelope=known.envelope, sources=self._sources(known), make=makes)
                done.read = (await self._transfer.rebuild_shards(job)).bytes
            try:
                await self._push_all(located, group, known, makes, holders, done)
            finally:
                await self._transfer.drop_staged(known.id)
        if not done.placed:
            raise Unavailable("nobody took a shard that was made anew")
        return done

    async def _coded_again(self, located: Located, group: int, known: KnownEncoding, make: list[int]) -> bool:
        """Whether these shards are staged now, made from the whole group."""
        whole = await self._whole(located, group)
        if whole is None:
            return False
        record = known.record
        job = EncodeGroup(
            model=located.model,
            group=group,
            group_id=record.group,
            length=record.length,
            spans=[SourceSpan(fd=0, offset=0, length=record.length)],
            k=record.k,
            n=record.n,
            compression=record.compression,
            element=1,
            n_max=len(record.roots),
            like=known.envelope,
            stage=tuple(make),
        )
        try:
            encoded = await self._transfer.encode_group(job, [whole.fd])
        finally:
            whole.close()
        if encoded.encoding == known.id:
            return True
        await self._transfer.drop_staged(EncodingId(encoded.encoding))
        return False

    def _sources(self, known: KnownEncoding) -> list[Source]:
        """This node first: its own shard costs nobody anything."""
        found = [
            Source(peer=peer, shard=shard)
            for shard, peers in self._swarm.holders(known.id).items()
            for peer in peers
            if not self._swarm.banned(peer) and not self._swarm.set_aside(known.id, shard, peer)
        ]
        return sorted(found, key=lambda source: (source.peer != self._placer.me, source.shard, source.peer))

    def _homes(
        self,
        located: Located,
        known: KnownEncoding,
        make: Sequence[int],
        holders: Mapping[int, Sequence[str]],
        refused: Collection[str],
        done: Restored,
    ) -> list[tuple[int, str]]:
        """(shard, peer) for those of `make` that aren't placed yet; fewer where too few nodes may take one."""
        record = known.record
        beside = {peer for peers in holders.values() for peer in peers} | set(done.placed.values())
        left = [shard for shard in make if shard not in done.placed]
        return self._placer.placement().choose(
            record.group, record.n, k=record.k, model=located.model, beside=beside, without=refused, shards=left
        )

    async def _push_all(
        self, located: Located, group: int, known: KnownEncoding, make: Sequence[int], holders: Mapping[int, Sequence[str]], done: Restored
    ) -> None:
        """Whoever refuses is passed over, until all have a home or nobody is left."""
        refused: set[str] = set()
        while jobs := [(shard, PeerId(peer)) for shard, peer in self._homes(located, known, make, holders, refused, done)]:
            took = await asyncio.gather(*(self._put(located, group, known, shard, peer) for shard, peer in jobs))
            for (shard, peer), taken in zip(jobs, took, strict=True):
                if taken:
                    done.placed[shard] = peer
                    done.written += known.record.shard_length()
                else:
                    refused.add(peer)

    async def _put(self, located: Located, group: int, known: KnownEncoding, shard: int, peer: PeerId) -> bool:
        """Whether the shard is durable there now."""
        try:
            if peer == self._placer.me:
                await self._transfer.keep_shard(KeepShard(encoding=known.id, shard=shard, model=located.model, group=group))
                return True
            reply = await self._grants.to_put(peer, known.id, known.envelope, shard, located.model)
            await self._transfer.push_shard(
                PushShard(encoding=known.id, shard=shard, peer=peer, urls=reply.urls, tls=reply.tls, grant=reply.grant)
            )
            self._swarm.vouch(HeldShard(peer, known.id, shard))
        except MfError as error:
            log.info("%s took no shard of %s: %s", peer, encoding_text(known.id), error)
            return False
        await self._also_for(located, known, shard, peer)
        return True

    async def _also_for(self, located: Located, known: KnownEncoding, shard: int, peer: PeerId) -> None:
        try:
            await tell_other_models(self._transfer, self._grants, peer, ShardKey(known.id, shard), located.model)
        except MfError as error:
            log.warning("%s doesn't keep a shard of %s for every model it is of: %s", peer, encoding_text(known.id), error)
