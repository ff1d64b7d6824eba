"""Who holds what, as far as their word is good: those who answer, without copies found bad, and which of theirs passed audits."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from erasure.audit import AuditBook, HeldShard
from node.swarm.archive import Archive
from node.swarm.holdings import view_of
from node.swarm.interface import HoldingView
from node.swarm.liveness import Liveness
from node.swarm.reputation import Reputation
from protocol.ids import EncodingId, ModelId, PeerId

log = logging.getLogger(__name__)


class Holders:
    """`now` is the wall's clock, `monotonic` that of audits."""

    def __init__(
        self,
        own: PeerId,
        archive: Archive,
        liveness: Liveness,
        rng: random.Random,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._own, self._archive, self._liveness = own, archive, liveness
        self._rng, self._now, self._monotonic = rng, now, monotonic
        self._reputation = Reputation()
        self.audits = AuditBook()

    def of_model(self, model: ModelId) -> list[HoldingView]:
        return [view_of(kept) for kept in self._archive.holdings.of_model(model) if self._usable(kept.signer)]

    def of(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        now = self._now()
        found: dict[int, list[PeerId]] = {}
        for shard, peers in self._archive.holdings.holders(encoding, self._usable).items():
            if good := [peer for peer in peers if not self._reputation.set_aside(encoding, shard, peer, now)]:
                found[shard] = good
        return found

    def counted(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        now = self._monotonic()

        def counts(peer: PeerId, shard: int) -> bool:
            return peer == self._own or self.audits.counts(HeldShard(peer, encoding, shard), now)

        lying = {shard: [peer for peer in peers if counts(peer, shard)] for shard, peers in self.of(encoding).items()}
        return {shard: peers for shard, peers in lying.items() if peers}

    def vouch(self, held: HeldShard) -> None:
        self.audits.vouch(held, self._monotonic(), self._rng)

    def blame(self, peer: PeerId, shard: str, reason: str) -> None:
        banned = self._reputation.blame(peer, shard, reason, self._now())
        log.warning(
            "%s served wrong bytes of %s: %s%s",
            peer,
            shard,
            reason,
            "; it is banned for a while" if banned else "",
            extra={"event": "peer_blamed", "fields": {"peer": peer, "shard": shard, "reason": reason, "banned": banned}},
        )

    def banned(self, peer: PeerId) -> bool:
        return self._reputation.banned(peer, self._now())

    def set_aside(self, encoding: EncodingId, shard: int, peer: PeerId) -> bool:
        return self._reputation.set_aside(encoding, shard, peer, self._now())

    def blamed(self) -> list[dict[str, Any]]:
        return self._reputation.blamed()

    def _usable(self, peer: PeerId) -> bool:
        return peer == self._own or (self._liveness.routable(peer) and not self.banned(peer))
