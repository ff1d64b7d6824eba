"""What this node sees of the groups whose shards it holds, as the repair policy is shown it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from erasure.audit import Verdict
from erasure.durability import measured, shards_wanted
from erasure.presence import Presence
from erasure.repair import Claim
from erasure.standing import GroupView
from node.locate import KnownEncoding, Located, Locator
from node.sightings import Sighting, Sightings
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol.ids import EncodingId, ModelId, PeerId

FAILED = (Verdict.WRONG, Verdict.MISSING, Verdict.LATE)


@dataclass(frozen=True)
class Watched:
    """One encoding of which a shard lies here, as the policy is shown it."""

    located: Located
    group: int
    known: KnownEncoding
    view: GroupView


class RepairSight:
    """`now` is a monotonic clock, `unix` the wall's."""

    def __init__(
        self,
        me: PeerId,
        swarm: Swarm,
        transfer: Transfer,
        locator: Locator,
        gone_after: float,
        now: Callable[[], float],
        unix: Callable[[], float],
    ) -> None:
        self.me = me
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self.now = now
        self.unix = unix
        self.presence = Presence(now(), gone_after)
        self._sightings = Sightings()

    async def look(self, now: float) -> dict[EncodingId, Watched]:
        """The groups of which a shard of the best encoding lies here."""
        self._see_peers(now)
        watched = {entry.known.id: entry for entry in await self._watched(now)}
        self._sightings.keep_only(set(watched))
        return watched

    def holders(self, encoding: EncodingId) -> dict[int, list[str]]:
        """Those that are away, but not gone, too."""
        return self._sightings.holders(encoding)

    def saved(self) -> list[Sighting]:
        """What must outlive a restart."""
        return self._sightings.saved(self.presence, self.now(), self.unix())

    def restore(self, sightings: list[Sighting]) -> None:
        self._sightings.restore(sightings, self.presence, self.now(), self.unix())

    def _see_peers(self, now: float) -> None:
        self.presence.see(self.me, True, now)
        for view in self._swarm.peers():
            if view.peer != self.me:
                since = None if view.last_seen is None else now - max(0.0, self.unix() - view.last_seen)
                self.presence.see(view.peer, view.routable, now, since)

    async def _watched(self, now: float) -> list[Watched]:
        """The best of the encodings of every group of which a shard lies here."""
        lying: dict[ModelId, set[bytes]] = {}
        for info in await self._transfer.list_shards():
            lying.setdefault(info.model, set()).add(info.key.encoding)
        found: list[Watched] = []
        ups = self._ups(now)
        for model, encodings in lying.items():
            located = await self._locator.located_here(model)
            if located is None:
                continue
            await self._locator.refresh(located)
            for group, entries in located.encodings.items():
                best = self._best([known for known in entries if known.id not in located.blamed], now)
                if best is not None and best.id in encodings:
                    found.append(Watched(located, group, best, self._view(best, ups, self._full(model, group, best))))
        return found

    def _best(self, entries: list[KnownEncoding], now: float) -> KnownEncoding | None:
        """The encoding that bears most losses is kept up; the others of the group may wither."""
        for known in entries:
            self._sightings.see(known.id, self._kept(known.id, now), self.presence, now)
        return max(entries, key=lambda known: (len(self._sightings.holders(known.id)) - known.record.k, known.id), default=None)

    def _kept(self, encoding: EncodingId, now: float) -> dict[int, list[PeerId]]:
        """Who announces which shard, without those whose last audit showed that they don't keep it.

        One that wasn't audited yet, or couldn't be asked, stays: after a restart nobody was, and that is no loss.
        """
        failed = {
            (held.peer, held.shard)
            for held, verdict in self._swarm.audits.uncounted(now)
            if held.encoding == encoding and verdict in FAILED
        }
        announced = self._swarm.holders(encoding)
        return {shard: [peer for peer in peers if (peer, shard) not in failed] for shard, peers in announced.items()}

    def _full(self, model: ModelId, group: int, known: KnownEncoding) -> list[PeerId]:
        """Who has the whole group beside a shard of it. The shard is audited, a full holding isn't: without one, whoever says that it
        has everything would come first with every repair."""
        return [
            view.peer
            for view in self._swarm.holdings(model)
            if group in view.full and any(entry.encoding == known.id for entry in view.held)
        ]

    def _view(self, known: KnownEncoding, ups: list[float], full: list[PeerId]) -> GroupView:
        record, roots = known.record, len(known.record.roots)
        wanted = shards_wanted(record.k, record.n, roots, len(ups), ups) if ups else record.n
        return GroupView(known.id, record.k, wanted, roots, record.shard_length(), self._sightings.holders(known.id), full)

    def _ups(self, now: float) -> list[float]:
        """Availability of this node and of each peer that lends storage, as measured: an encoding of more roots grows where it is low."""
        lending = [view.peer for view in self._swarm.peers() if view.record is not None and view.record.lend in ("storage", "both")]
        return [measured(*self.presence.up_and_seen(peer, now)) for peer in {self.me, *lending}]

    def claims(self, watched: dict[EncodingId, Watched], now: float, longest: float) -> dict[bytes, list[Claim]]:
        """Others' claims, in this node's time. Their clocks may be off, so none is believed for longer than a claim may last."""
        claims: dict[bytes, list[Claim]] = {}
        unix = self.unix()
        for model in {entry.located.model for entry in watched.values()}:
            for view in self._swarm.holdings(model):
                for repair in view.repairs:
                    if repair.encoding in watched and view.peer != self.me:
                        lasts = min(repair.expires - unix, longest)
                        claims.setdefault(repair.encoding, []).append(Claim(repair.encoding, view.peer, now + lasts))
        return claims
