"""How many shards, and how many losses they bear.

Below 12 nodes one node keeps everything (1, 1), two keep a copy each (1, 2), and from three on k = 2 and n = min(nodes, 6): with k
standing still, each node that joins adds a shard to the encoding that is there, and nothing is coded anew. From 12 on k and n
minimise the chance that a group can't be read, under 2.5 times the plain size. Neither ever does worse than copies of the same
cost, nor from 12 on than three copies: where few nodes are up, copies beat a code, and then copies are taken.

The chance is the binomial tail at the nodes' mean availability. For nodes that differ it is the upper bound (Hoeffding, 1956: of all
independent trials with a mean above k/n, equal ones have the fattest lower tail), so the words never promise too much. What it
can't know is that nodes fail together; placement keeps shards in different failure domains for that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import BadInput
from protocol.limits import MAX_SHARDS

SMALL = 12
MAX_OVERHEAD = 2.5
MAX_OVERHEAD_SMALL = 3.0
UNSEEN = 0.8
"""Availability assumed of a node until it has been seen for 7 days."""

SEEN_ENOUGH = 7 * 86_400.0
"""Seconds."""

ENOUGH = 1e-9
"""A chance of loss below which more shards aren't worth their place."""

MAX_K = 20
"""A read asks k nodes at once: beyond this, connections cost more than the smaller overhead saves."""


@dataclass(frozen=True)
class Choice:
    """`unreadable` is the chance that, at a given moment, fewer than k of the n nodes are up; `words` says it to a person."""

    k: int
    n: int
    unreadable: float
    words: str

    @property
    def losses(self) -> int:
        return self.n - self.k


def choose_k_n(nodes: int, availability: float | Sequence[float] = UNSEEN, overhead: float = MAX_OVERHEAD) -> Choice:
    """k and n for a swarm of `nodes` that lend storage; `availability` is their mean measured share of time up, or each one's."""
    if nodes < 1:
        raise BadInput("there is no node to keep a shard", hint="lend storage on this node: --lend storage")
    up = _mean(availability)
    if nodes < SMALL:
        k, n = (1, nodes) if nodes < 3 else (2, min(nodes, 6))
        if unreadable(k, n, up) > unreadable(1, n // k, up):
            k, n = 1, n // k
        return _choice(k, n, up, nodes)
    k, n = min(_codes(nodes, overhead), key=lambda code: _rank(code, up))
    if unreadable(k, n, up) > unreadable(1, 3, up):
        k, n = 1, 3
    return _choice(k, n, up, nodes)


def measured(up: float, seen: float) -> float:
    """A node's measured share of time up, of `seen` seconds since it was first met; UNSEEN until those are 7 days."""
    if not 0 <= up <= seen:
        raise BadInput("a node is up for a part of the time since it was first seen")
    return up / seen if seen >= SEEN_ENOUGH else UNSEEN


def shards_wanted(k: int, n: int, n_max: int, nodes: int, availability: float | Sequence[float] = UNSEEN) -> int:
    """How many shards an encoding chosen as (k, n) should have now: more, up to n_max, where nodes turned out to be up less.

    Never fewer than n: a good week is no reason to drop what is there. Raised only while k of n is less readable than the chooser
    would make it today, and only as far as the overhead cap and the number of nodes allow.
    """
    if not 1 <= k <= n <= n_max <= MAX_SHARDS:
        raise BadInput(f"k, n and n_max must keep 1 <= k <= n <= n_max <= {MAX_SHARDS}, not {k}, {n}, {n_max}")
    up = _mean(availability)
    target = max(choose_k_n(nodes, up).unreadable, ENOUGH)
    most = min(n_max, nodes, math.floor(k * (MAX_OVERHEAD_SMALL if nodes < SMALL else MAX_OVERHEAD)))
    wanted = n
    while wanted < most and unreadable(k, wanted, up) > target:
        wanted += 1
    return wanted


def unreadable(k: int, n: int, up: float) -> float:
    """Chance that fewer than k of n independent nodes are up, each with chance `up`."""
    return math.fsum(math.comb(n, alive) * up**alive * (1 - up) ** (n - alive) for alive in range(k))


def survives_losses(groups: Iterable[Collection[int]], k: int | Sequence[int]) -> int:
    """How many more nodes may go: the least over groups of (shards in distinct routable domains - k).

    `groups` gives per group the numbers of its durable shards, one per domain; `k` is one for all or one per group. Negative: a
    group can't be read now. No groups: 0.
    """
    return min(survives_each(groups, k), default=0)


def survives_each(groups: Iterable[Collection[int]], k: int | Sequence[int]) -> list[int]:
    """`survives_losses` of each group by itself, in order."""
    counts = [len(set(shards)) for shards in groups]
    needed = [k] * len(counts) if isinstance(k, int) else list(k)
    return [have - need for have, need in zip(counts, needed, strict=True)]


def apart(shards: Mapping[int, Iterable[str]]) -> dict[int, str]:
    """The most shards that lie in distinct domains, each with a domain of its own; `shards` gives every domain a shard lies in."""
    taken: dict[str, int] = {}
    lying = {shard: sorted(set(domains)) for shard, domains in shards.items()}

    def settle(shard: int, tried: set[str]) -> bool:
        for domain in lying[shard]:
            if domain not in tried:
                tried.add(domain)
                if domain not in taken or settle(taken[domain], tried):
                    taken[domain] = shard
                    return True
        return False

    for shard in sorted(lying):
        settle(shard, set())
    return {shard: domain for domain, shard in taken.items()}


def enough_durable(k: int, n: int) -> int:
    """r = k + half of the rest: a publish counts with this many durable shards, a repair begins below it."""
    return k + -(-(n - k) // 2)


def _mean(availability: float | Sequence[float]) -> float:
    values = [availability] if isinstance(availability, int | float) else list(availability)
    if not values or not all(0 <= value <= 1 for value in values):
        raise BadInput("availability is a share of time between 0 and 1")
    return math.fsum(values) / len(values)


def _codes(nodes: int, overhead: float) -> list[tuple[int, int]]:
    most = min(nodes, MAX_SHARDS)
    codes = [(k, n) for k in range(1, MAX_K + 1) for n in range(k, most + 1) if n <= overhead * k]
    return codes or [(1, 1)]


def _rank(code: tuple[int, int], up: float) -> tuple[float, float, int]:
    """Least chance of loss first; among those that are good enough the least stored, then the fewest nodes."""
    k, n = code
    return max(unreadable(k, n, up), ENOUGH), n / k, n


def _choice(k: int, n: int, up: float, nodes: int) -> Choice:
    chance = unreadable(k, n, up)
    if n == 1:
        kept = "one node keeps everything: nothing survives its loss; shards spread as others join"
    elif k == 1:
        kept = f"{n} copies: any {n - 1} of their nodes may go"
    else:
        kept = f"any {k} of {n} shards: any {n - k} of their nodes may go"
    words = f"{kept}; {n / k:.2g} times the size stored; with nodes up {up:.0%} of the time a group is unreadable {_share(chance)}"
    return Choice(k, n, chance, f"{words} ({nodes} node{'s' if nodes > 1 else ''} lending)")


def _share(chance: float) -> str:
    if chance <= ENOUGH:
        return "less than once in a billion looks"
    return f"about once in {round(1 / chance):,} looks" if chance < 1 else "always"
