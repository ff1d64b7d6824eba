"""Which shards a newcomer takes over, and how fast: the least that makes the places right again.

By rendezvous a newcomer wins a place in some groups; in each of them exactly one shard moves, from the holder that would be chosen
last (of those that hold too much, if there are any). Everything else stays, also where it doesn't lie as `Placement` would put it
today: weights drift with every measurement, and a shard isn't moved for that. Each holder decides for its own shards alone. Where two
holders see different candidates both may offer the newcomer a shard of one group: it takes one, since a node keeps one shard of a
group at most.

A move may never make a group less safe: domains held apart stay apart, and the newcomer holds its shard durably before the old
one is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from erasure.placement import Placement

RATE = 4e6
"""Bytes a second that moving shards may take of a node, by default: a third of 100 Mbit/s."""
BURST = 60.0
"""Seconds of the rate that may be saved up."""


@dataclass(frozen=True)
class GroupHeld:
    """Who holds which shard of a group; `shard_bytes` of one shard. `model` draws the region, see `Placement.choose`."""

    group: bytes
    k: int
    n: int
    shard_bytes: int
    held: Mapping[int, str]
    model: bytes | None = None


@dataclass(frozen=True)
class Move:
    group: bytes
    shard: int
    source: str
    to: str
    shard_bytes: int


def moves(placement: Placement, groups: Iterable[GroupHeld], newcomers: Collection[str], source: str | None = None) -> list[Move]:
    """What moves to the newcomers, who are candidates of `placement` already; with `source` only from that holder."""
    found: list[Move] = []
    for group in groups:
        if source is None or source in group.held.values():
            found += [move for move in _of_group(placement, group, newcomers) if source in (None, move.source)]
    return found


def _of_group(placement: Placement, group: GroupHeld, newcomers: Collection[str]) -> list[Move]:
    chosen = {peer for _, peer in placement.choose(group.group, group.n, k=group.k, model=group.model, evenly=False)}
    held = dict(group.held)
    found: list[Move] = []
    for newcomer in sorted((chosen & set(newcomers)) - set(held.values())):
        shard = _given_up(placement, group, held, chosen, newcomer)
        if shard is not None:
            found.append(Move(group.group, shard, held[shard], newcomer, group.shard_bytes))
            held[shard] = newcomer
    return found


def _given_up(placement: Placement, group: GroupHeld, held: Mapping[int, str], chosen: set[str], newcomer: str) -> int | None:
    """The shard whose holder is chosen least, if any may go to the newcomer. From a domain that holds two rather than one, and from
    who holds too much rather than from others."""
    if len(held) < group.n:
        return None  # what is missing is the repairer's: it comes first
    domains = {peer: placement.domain(peer) or peer for peer in held.values()}
    holding, new = Counter(domains.values()), placement.domain(newcomer) or newcomer

    def may_go(shard: int, peer: str) -> bool:
        beside = holding[new] - (domains[peer] == new)
        others = [other for at, other in held.items() if at != shard]
        return (
            peer not in chosen and (beside == 0 or beside < holding[domains[peer]]) and placement.fits(newcomer, others, group.n, group.k)
        )

    free = [shard for shard, peer in held.items() if may_go(shard, peer)]

    def kept_rather(shard: int) -> tuple[bool, bool, float, int]:
        peer = held[shard]
        return holding[domains[peer]] < 2, not placement.crowded(peer), placement.score(group.group, peer), shard

    return min(free, key=kept_rather, default=None)


@dataclass
class Pace:
    """A bounded rate of moving: `allows` says when, by `now` (seconds, any clock that only goes forward)."""

    rate: float = RATE
    _saved: float = field(default=0.0, init=False)
    _at: float | None = field(default=None, init=False)

    def wait(self, size: int, now: float) -> float:
        """Seconds to wait before `size` bytes may move; 0 takes them. What is larger than the burst waits for a full one."""
        most = self.rate * BURST
        self._saved = most if self._at is None else min(most, self._saved + (now - self._at) * self.rate)
        self._at = now
        lacking = min(size, most) - self._saved
        if lacking >= 1:  # a part of a byte is what clocks round off
            return lacking / self.rate
        self._saved -= size
        return 0.0
