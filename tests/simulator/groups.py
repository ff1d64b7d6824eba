"""Groups: who holds which shard in truth, and what each node has heard of it and of claims by now.

Most of the time everybody has heard everything, and one view serves all. `recent` are holdings that some have not heard of yet; only for
groups that have such a view is put together per observer. Lags come from a hash of observer and event: nothing is stored per pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from erasure.repair import Claim
from erasure.standing import GroupView
from tests.simulator.nodes import SimNode

LAG_MOST = 120.0


@dataclass(slots=True, eq=False)
class Told:
    """Something told to the swarm at `at` from `side`; `across` is when the other side of a cut could first hear it."""

    number: int
    at: float
    side: int
    across: float

    def heard(self, observer: SimNode, now: float) -> bool:
        start = self.at if observer.side == self.side else self.across
        return now >= start + lag(observer.number, self.number)


@dataclass(slots=True, eq=False)
class Placed(Told):
    shard: int = 0
    node: SimNode | None = None


@dataclass(slots=True, eq=False)
class Claimed(Told):
    claim: Claim | None = None
    node: SimNode | None = None


def lag(observer: int, event: int) -> float:
    """1 to 10 s for nine of ten, up to two minutes for the tenth."""
    drawn = ((observer * 2_654_435_761 ^ event * 2_246_822_519) * 2_654_435_761 >> 13 & 0xFFFF) / 0x10000
    return 1 + 10 * drawn if drawn < 0.9 else 10 + 1_100 * (drawn - 0.9)


@dataclass(slots=True, eq=False)
class SimGroup:
    number: int
    name: bytes
    k: int
    n: int
    n_max: int
    shard_bytes: int
    holders: dict[int, list[SimNode]] = field(default_factory=dict)
    """In truth, those that are away too; nodes gone long ago are struck off."""
    recent: list[Placed] = field(default_factory=list)
    claims: list[Claimed] = field(default_factory=list)
    at_work: list[SimNode] = field(default_factory=list)
    """Whose repairs are under way; those of nodes that went away meanwhile too."""
    lost_at: float | None = None
    alarms: list[float] = field(default_factory=list)
    _settled: GroupView | None = None

    def present(self) -> int:
        """Shards with a holder that is up."""
        return sum(any(node.up for node in nodes) for nodes in self.holders.values())

    def surviving(self) -> int:
        """Shards with a holder that hasn't left for good."""
        return sum(any(not node.left for node in nodes) for nodes in self.holders.values())

    def changed(self) -> None:
        self._settled = None

    def settled(self) -> GroupView:
        """What everybody has heard."""
        if self._settled is None:
            unheard = {(placed.shard, placed.node) for placed in self.recent}
            known = {
                shard: tuple(node.name for node in nodes if (shard, node) not in unheard) for shard, nodes in sorted(self.holders.items())
            }
            held = {shard: peers for shard, peers in known.items() if peers}
            self._settled = GroupView(self.name, self.k, self.n, self.n_max, self.shard_bytes, held)
        return self._settled

    def seen_by(self, observer: SimNode, now: float) -> GroupView:
        if not self.recent:
            return self.settled()
        held = dict(self.settled().holders)
        for placed in self.recent:
            assert placed.node is not None
            if placed.node is observer or placed.heard(observer, now):
                held[placed.shard] = (*held.get(placed.shard, ()), placed.node.name)
        return GroupView(self.name, self.k, self.n, self.n_max, self.shard_bytes, held)

    def claims_seen_by(self, observer: SimNode, now: float) -> list[Claim]:
        newest: dict[str, Claimed] = {}
        for claimed in self.claims:
            if claimed.claim is not None and claimed.node is not observer and claimed.heard(observer, now):
                before = newest.get(claimed.claim.peer)
                if before is None or before.at <= claimed.at:
                    newest[claimed.claim.peer] = claimed
        return [claimed.claim for claimed in newest.values() if claimed.claim is not None]

    def healed(self, now: float) -> None:
        """A cut is over: what the other side never heard, it hears from now on."""
        for told in (*self.recent, *self.claims):
            told.across = min(told.across, now)

    def settle(self, now: float) -> None:
        """What all have heard by now is no longer recent; claims that ran out go."""
        heard = [placed for placed in self.recent if now >= placed.across + LAG_MOST]
        if heard:
            self.recent = [placed for placed in self.recent if now < placed.across + LAG_MOST]
            self.changed()
        if self.claims:
            self._prune(now)

    def _prune(self, now: float) -> None:
        """Claims that all know to be over, and those that all know a later one of."""
        everywhere = {claimed.claim.peer: claimed.at for claimed in self.claims if claimed.claim and now >= claimed.across + LAG_MOST}
        self.claims = [
            claimed
            for claimed in self.claims
            if claimed.claim is not None
            and claimed.at >= everywhere.get(claimed.claim.peer, claimed.at)
            and (claimed.claim.expires > now or now < claimed.across + LAG_MOST)
        ]


NEVER = math.inf
