"""What the transfer process asks of the node: grants from peers, and to be told of faults, progress and arrivals."""

from __future__ import annotations

import logging
from collections.abc import Callable

from node.grant_book import GrantBook
from node.keep_holdings import HoldingKeeper
from node.store.interface import ShardInfo
from node.swarm.interface import Swarm
from node.swarm.reputation import shard_text
from node.transfer.sources import Access, Evidence
from protocol.errors import MfError
from protocol.ids import EncodingId, ModelId, PeerId

log = logging.getLogger(__name__)


class NodeCallbacks:
    """Implements the transfer process's `TransferCallbacks`. Made before the parts it speaks to; `connect` before the start."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._book: GrantBook | None = None
        self._keeper: HoldingKeeper | None = None
        self._ended: Callable[[], None] = lambda: None

    def connect(self, book: GrantBook, keeper: HoldingKeeper, ended: Callable[[], None]) -> None:
        self._book, self._keeper, self._ended = book, keeper, ended

    async def need_grant(self, peer: str, encoding: EncodingId, shards: list[int]) -> Access:
        if self._book is None:
            raise MfError("the node isn't started")
        reply = await self._book.to_get(PeerId(peer), encoding, shards)
        return Access(urls=reply.urls, tls=reply.tls, grant=reply.grant)

    async def leaf_fault(self, peer: str, encoding: EncodingId, shard: int, reason: str, evidence: Evidence | None) -> None:
        """A peer sent a leaf that isn't the one committed to."""
        self._swarm.blame(PeerId(peer), shard_text(encoding, shard), reason)

    async def shard_stored(self, info: ShardInfo) -> None:
        fields = {"shard": shard_text(info.key.encoding, info.key.shard), "owner": info.owner, "bytes": info.bytes}
        log.info("stored a shard", extra={"event": "shard_stored", "fields": fields})
        if self._keeper is not None:
            self._keeper.changed(info.model)

    async def shards_gone(self, model: ModelId) -> None:
        if self._keeper is not None:
            self._keeper.changed(model)

    async def progress(self, job: str, done: int, total: int) -> None:
        """Figures within a group; the verbs tell progress by groups."""

    def ended(self, error: MfError) -> None:
        self._ended()
