"""One repair carried out: k shards read, the missing ones made, each put at a node that has none of the group."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from erasure.audit import HeldShard
from node.grant_book import GrantBook
from node.locate import KnownEncoding, Located
from node.place import Placer
from node.swarm.interface import Swarm
from node.transfer.jobs import KeepShard, PushShard, RebuildShards, Source
from node.transfer.remote import Transfer
from protocol.errors import MfError, Unavailable
from protocol.ids import PeerId, encoding_text

log = logging.getLogger(__name__)


@dataclass
class Restored:
    """`placed[shard]` is its new holder; bytes read and written (what went to this node's own store too)."""

    placed: dict[int, PeerId] = field(default_factory=dict)
    read: int = 0
    written: int = 0


class RepairWork:
    def __init__(self, swarm: Swarm, transfer: Transfer, grants: GrantBook, placer: Placer) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._grants = grants
        self._placer = placer

    async def restore(
        self, located: Located, group: int, known: KnownEncoding, make: Sequence[int], holders: Mapping[int, Sequence[str]]
    ) -> Restored:
        """Makes the shards and places as many as find a home. `holders`: who has a shard or may come back with one: they get none.

        `Unavailable` where k can't be read, or nobody can take any; nothing stays staged.
        """
        done = Restored()
        with self._placer.staging():
            homes = self._homes(located, known, make, holders, set())
            if not homes:
                raise Unavailable("no node that has no shard of the group can take one", hint="let more peers lend storage")
            made = sorted(shard for shard, _ in homes)
            job = RebuildShards(job=uuid.uuid4().hex, envelope=known.envelope, sources=self._sources(known), make=made)
            done.read = (await self._transfer.rebuild_shards(job)).bytes
            try:
                await self._push_all(located, group, known, job.make, holders, done)
            finally:
                await self._transfer.drop_staged(known.id)
        if not done.placed:
            raise Unavailable("nobody took a shard that was made anew")
        return done

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
        self, located: Located, known: KnownEncoding, make: Sequence[int], holders: Mapping[int, Sequence[str]], refused: set[str]
    ) -> list[tuple[int, str]]:
        """Who may take which of these shards, by the rules that hold for a publish too."""
        held = {shard: peers[0] for shard, peers in holders.items() if peers and shard not in make}
        # Nor does one get a shard that may come back with one: of a number that is made anew, or beside another holder.
        others = {peer for shard, peers in holders.items() for peer in peers if held.get(shard) != peer}
        return self._placer.placement().choose(
            known.record.group,
            len(known.record.roots),
            k=known.record.k,
            model=located.model,
            held=held,
            without=others | refused,
            shards=list(make),
        )

    async def _push_all(
        self, located: Located, group: int, known: KnownEncoding, make: Sequence[int], holders: Mapping[int, Sequence[str]], done: Restored
    ) -> None:
        """Whoever refuses is passed over, until all have a home or nobody is left."""
        refused: set[str] = set()
        while left := [shard for shard in make if shard not in done.placed]:
            placed = {shard: [str(peer)] for shard, peer in done.placed.items()}
            jobs = [(shard, PeerId(peer)) for shard, peer in self._homes(located, known, left, {**holders, **placed}, refused)]
            if not jobs:
                return
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
        return True
