"""What losses lie ahead: the chance that a group falls below k before it is repaired, and which churn a repair bandwidth suffices for.

Nodes are taken to leave independently at one measured rate. A present holder is still there after t seconds with chance exp(-rate t),
so "fewer than k of those present are left" is the same binomial tail as the chooser's.

**Which churn a bandwidth suffices for.** A repair starts when r - 1 shards count, reads k and writes m = n - r + 1, so it moves (k + m)
shards for m lost ones, and every lost shard costs (k + m) / m shards of traffic. The swarm loses about rate x n shards a second per
group. Two things must hold:

1. *throughput*: rate x n x groups x shard_bytes x (k + m) / m  <=  half of nodes x bandwidth (half, because who repairs which group is
   drawn by hash, and a queue that is more than half busy waits about as long as it works);
2. *time*: while one repair notices, waits and transfers (T seconds), so many of the r - 1 leave that fewer than k are left with a
   chance of at most `CHANCE`, over all the repairs of the time asked about.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from erasure.durability import enough_durable, unreadable

BUSY = 0.5
NOTICE = 300.0
"""Seconds from a departure to the first byte of the repair, where a group is in danger: noticed, drawn, claimed, settled."""

CHANCE = 0.01
"""Of losing a single group in all the time asked about."""


@dataclass(frozen=True)
class Churn:
    """`leaving` departures for good per node and second; `bandwidth` bytes a second each node spends on repair, either way."""

    leaving: float
    nodes: int
    bandwidth: float


@dataclass(frozen=True)
class Verdict:
    """`needed` and `there` are bytes a second over the swarm; `takes` seconds one repair; `lost` the chance of losing any group."""

    enough: bool
    needed: float
    there: float
    takes: float
    lost: float
    words: str


@functools.lru_cache(maxsize=1 << 14)
def chance_below_k(k: int, present: int, leaving: float, seconds: float) -> float:
    """Chance that, `seconds` from now, fewer than k of the present holders are left if nothing is repaired."""
    return unreadable(k, present, math.exp(-leaving * seconds)) if present >= k else 1.0


def time_to_loss(k: int, present: int, leaving: float) -> float:
    """Mean seconds until fewer than k of the present holders are left, unrepaired."""
    return math.fsum(1 / (alive * leaving) for alive in range(k, present + 1))


def repair_suffices(k: int, n: int, shard_bytes: int, groups: int, churn: Churn, seconds: float = 86_400.0) -> Verdict:
    """Whether `groups` groups of (k, n) survive `seconds` of this churn, by the formula above."""
    r = enough_durable(k, n)
    missing = n - r + 1
    needed = churn.leaving * n * groups * shard_bytes * (k + missing) / missing
    there = churn.nodes * churn.bandwidth
    busy = needed / there
    takes = NOTICE + (k + missing) * shard_bytes / churn.bandwidth * (1 + busy / max(1e-9, 1 - busy) if busy < 1 else math.inf)
    repairs = 1 + churn.leaving * n * groups * seconds / missing
    lost = min(1.0, repairs * chance_below_k(k, r - 1, churn.leaving, takes))
    enough = busy <= BUSY and lost <= CHANCE
    words = (
        f"repair needs {needed / 1e6:.3g} MB/s of the {there / 1e6:.3g} MB/s there are (at most {BUSY:.0%} may be used) and takes "
        f"{takes / 60:.3g} min a group; the chance of losing one in {seconds / 3600:.3g} h is {lost:.1g}"
    )
    return Verdict(enough, needed, there, takes, lost, words)
