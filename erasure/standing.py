"""How a group stands: which of its shards count, which are missing, which are more than needed, and who is asked first to act. Pure.

A shard counts while its holder isn't gone (`presence.py`). Where a group is in danger the clock runs faster: if the chance to fall
below k within the time a repair takes is over `danger`, an absence counts for its grace only; over `great_danger` only for the
seconds the short clock needs. What the peer's own history says (it comes back) and what vanished together with many is excepted.

Who acts is drawn by lot: an order by hash of (day, group, peer), those that keep a full holding first, because they read nothing.
Everybody who sees the same holders sees the same order, and it changes daily, so that no node is unlucky for long.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from erasure.forecast import chance_below_k
from erasure.presence import HERE, Presence

DAY = 86_400


@dataclass(frozen=True)
class GroupView:
    """One encoding of a group as this node sees it. `group` names it in claims (the encoding's id).

    `holders[shard]`: peers that announce the shard or did when last seen, the away ones too; `full` keep a full holding. `n` is how
    many shards it should have now (`durability.shards_wanted`), `n_max` for how many the encoding has roots.
    """

    group: bytes
    k: int
    n: int
    n_max: int
    shard_bytes: int
    holders: Mapping[int, Sequence[str]]
    full: Sequence[str] = ()


@dataclass(frozen=True)
class Clocks:
    """`danger` and `great_danger` are chances to fall below k; `blink` the least seconds an absence lasts to mean anything."""

    danger: float = 1e-7
    great_danger: float = 1e-4
    blink: float = 60.0


@dataclass(frozen=True)
class Standing:
    """`counted` shards have a holder that isn't gone, `present` one that answers; `safe` counts those present or surely coming back."""

    counted: frozenset[int]
    present: frozenset[int]
    safe: int


def standing(view: GroupView, presence: Presence, now: float, bandwidth: float, clocks: Clocks) -> Standing:
    """`bandwidth` in bytes a second says how long a repair takes."""
    present: set[int] = set()
    back: set[int] = set()
    waited_for: dict[int, float] = {}
    for shard, peers in view.holders.items():
        for peer in peers:
            absence = presence.absence(peer, now)
            if absence is HERE:
                present.add(shard)
            elif absence is None:
                continue
            elif absence.back:
                back.add(shard)
            elif absence.seconds < absence.gone_after:
                waited_for[shard] = min(absence.seconds, waited_for.get(shard, math.inf))
    safe = present | back
    clock = _clock(view, len(safe), presence, now, bandwidth, clocks) if waited_for else 0.0
    counted = safe | {shard for shard, seconds in waited_for.items() if seconds < clock}
    return Standing(frozenset(counted), frozenset(present), len(safe))


def missing(view: GroupView, stands: Standing) -> tuple[int, ...]:
    """The columns to make: numbers nobody ever held first, then those of holders that are gone; as many as restore n.

    With a fresh number a holder that returns after all adds a shard; with an old one it would only add a copy.
    """
    wanted = view.n - len(stands.counted)
    fresh = [shard for shard in range(view.n_max) if shard not in view.holders]
    gone = [shard for shard in range(view.n_max) if shard in view.holders and shard not in stands.counted]
    return tuple([*fresh, *gone][: max(0, wanted)])


def spare_shard(me: str, view: GroupView, presence: Presence, now: float) -> int | None:
    """The shard here that the group can spare: one of more than n, copies first, then by lot. One holder at a time is told one."""
    here = [(shard, peer) for shard, peers in view.holders.items() for peer in peers if presence.away(peer, now) == 0.0]
    if len(here) <= view.n:
        return None
    first: set[int] = set()
    ranked: list[tuple[bool, int, int, str]] = []
    for place, (shard, peer) in enumerate(sorted(here, key=lambda entry: -_lot(0, view.group, entry[1]))):
        ranked.append((shard in first, place, shard, peer))
        first.add(shard)
    *_, shard, peer = max(ranked)
    return shard if peer == me else None


def repairers(view: GroupView, presence: Presence, now: float) -> set[str]:
    """Who can repair the group: holders that answer."""
    here = {peer for peers in view.holders.values() for peer in peers if presence.away(peer, now) == 0.0}
    return here | {peer for peer in view.full if presence.away(peer, now) == 0.0}


def readable(view: GroupView, stands: Standing, presence: Presence, now: float) -> bool:
    """k shards, or a full holding, at nodes that answer."""
    return len(stands.present) >= view.k or any(presence.away(peer, now) == 0.0 for peer in view.full)


def holds(peer: str, view: GroupView) -> bool:
    """A shard or all of them."""
    return peer in view.full or any(peer in peers for peers in view.holders.values())


def comes_before(view: GroupView, one: str, other: str, now: float) -> bool:
    """Whether `one` is asked to repair the group before `other` today."""
    day = int(now // DAY)
    return (one in view.full, _lot(day, view.group, one)) > (other in view.full, _lot(day, view.group, other))


def _clock(view: GroupView, safe: int, presence: Presence, now: float, bandwidth: float, clocks: Clocks) -> float:
    """The most seconds an absence may last and still count, for peers whose own history doesn't say more."""
    takes = (2 * view.n - view.k) * view.shard_bytes / bandwidth
    chance = chance_below_k(view.k, safe, presence.leaving_rate(now), 2 * presence.grace + takes)
    if chance > clocks.great_danger:
        return clocks.blink
    return presence.grace if chance > clocks.danger else math.inf


@functools.lru_cache(maxsize=1 << 17)
def _lot(day: int, group: bytes, peer: str) -> int:
    hasher = blake3(b"mf/repair/1")
    for part in (day.to_bytes(8, "big", signed=True), group, peer.encode()):
        hasher.update(len(part).to_bytes(2, "big"))
        hasher.update(part)
    return int.from_bytes(hasher.digest(length=8), "big")
