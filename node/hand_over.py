"""One shard that lies here moves to another node: pushed, durable and confirmed there, and only then dropped here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from erasure.audit import HeldShard
from node.also_for import tell_other_models
from node.grant_book import GrantBook
from node.keep_holdings import HoldingKeeper
from node.locate import KnownEncoding
from node.store.interface import ShardInfo, ShardKey
from node.swarm.interface import Swarm
from node.swarm.reputation import shard_text
from node.transfer.jobs import PushShard
from node.transfer.remote import Transfer
from protocol.encoding import encoding_id, parse_encoding
from protocol.errors import MfError, NotFound
from protocol.ids import EncodingId, PeerId, encoding_text

log = logging.getLogger(__name__)
LAST_WORD_WITHIN = 10.0


class HandOver:
    def __init__(self, me: PeerId, swarm: Swarm, transfer: Transfer, grants: GrantBook, keeper: HoldingKeeper) -> None:
        self._me = me
        self._swarm = swarm
        self._transfer = transfer
        self._grants = grants
        self._keeper = keeper

    async def known(self, encoding: EncodingId) -> KnownEncoding:
        """The signed record of an encoding of which a shard lies here."""
        envelope = await self._transfer.get_blob(encoding)
        if envelope is None:
            raise NotFound(f"the record of {encoding_text(encoding)} isn't here (any more)")
        signer, record = parse_encoding(envelope)
        return KnownEncoding(encoding_id(envelope), envelope, signer, record)

    def holders(self, encoding: EncodingId) -> dict[int, PeerId]:
        """Who else announces which shard, one node each."""
        found: dict[int, PeerId] = {}
        for shard, peers in sorted(self._swarm.holders(encoding).items()):
            others = [peer for peer in peers if peer != self._me and peer not in found.values()]
            if others:
                found[shard] = others[0]
        return found

    async def lies_at(self, peer: PeerId, key: ShardKey) -> bool:
        """The holder itself is asked: an announcement may be older than a loss."""
        try:
            return key.shard in await self._grants.held(peer, key.encoding, [key.shard])
        except MfError as error:
            log.info("%s doesn't confirm %s: %s", peer, shard_text(key.encoding, key.shard), error)
            return False

    async def move(self, info: ShardInfo, known: KnownEncoding, to: PeerId) -> None:
        """Raises what the other side, or the way to it, says; the shard is then still here."""
        reply = await self._grants.to_put(to, known.id, known.envelope, info.key.shard, info.model)
        push = PushShard(encoding=known.id, shard=info.key.shard, peer=to, urls=reply.urls, tls=reply.tls, grant=reply.grant, held=True)
        await self._transfer.push_shard(push)
        self._swarm.vouch(HeldShard(to, known.id, info.key.shard))
        await tell_other_models(self._transfer, self._grants, to, info.key, info.model)
        await self.drop(info, f"handed over to {to}")

    async def drop(self, info: ShardInfo, reason: str) -> None:
        await self._transfer.drop_shard(info.key, reason)
        self._keeper.changed(info.model)
        fields = {"shard": shard_text(info.key.encoding, info.key.shard), "reason": reason}
        log.info("a shard left", extra={"event": "shard_left", "fields": fields})

    async def tell(self, infos: Iterable[ShardInfo]) -> None:
        """Tells the swarm at once what lies here now of these models: the last word of a node that leaves."""
        await asyncio.wait_for(self._keeper.tell({info.model for info in infos}), LAST_WORD_WITHIN)
