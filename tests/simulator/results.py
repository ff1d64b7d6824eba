"""What came out of a run, and the least it could have cost.

The least possible: a repairer that knows everything at once and needs no time, in the same swarm with the same departures for good.
It waits until fewer than r shards of a group survive, then reads k shards once and writes each missing one once. It never mistakes
an absence. The real one may come out below it: where nothing is in danger it lets a group fall further, and one reading of k pays for more.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from dataclasses import dataclass, field

from erasure.durability import enough_durable


@dataclass
class Traffic:
    """Bytes. `wasted`: of those, for work that came to nothing."""

    read: int = 0
    written: int = 0
    wasted: int = 0

    def total(self) -> int:
        return self.read + self.written


@dataclass
class Reads:
    asked: int = 0
    served: int = 0
    seconds: list[float] = field(default_factory=list)

    def share(self) -> float:
        return self.served / self.asked if self.asked else 1.0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True)
class Sample:
    """The swarm at a moment; `spare` is, of the groups, the least and the mean of (present shards - k)."""

    hours: float
    up: int
    least_spare: int
    mean_spare: float
    repair_bytes: int
    least_bytes: int
    lost: int


@dataclass
class Result:
    nodes: int
    groups: int
    k: int
    n: int
    hours: float
    traffic: Traffic = field(default_factory=Traffic)
    reads: Reads = field(default_factory=Reads)
    least_bytes: int = 0
    repairs: int = 0
    failed: int = 0
    doubled: int = 0
    """Repairs begun while another node repaired the same group."""
    lost: list[tuple[int, float]] = field(default_factory=list)
    """(group, when)."""
    alarmed: int = 0
    """Groups for which an alarm was raised."""
    late: list[tuple[int, float]] = field(default_factory=list)
    """Lost groups with less than ten minutes' warning: (group, seconds of warning; 0 for none)."""
    samples: list[Sample] = field(default_factory=list)
    left: int = 0
    events: int = 0
    plans: int = 0

    def ratio(self) -> float:
        """Repair bytes over the least possible."""
        if not self.least_bytes:
            return math.inf if self.traffic.total() else 1.0
        return self.traffic.total() / self.least_bytes


class Ideal:
    """The repairer that knows everything, fed with the same comings and departures."""

    def __init__(self, k: int, n: int, shard_bytes: int, seed: int) -> None:
        self._k, self._n, self._r = k, n, enough_durable(k, n)
        self._shard_bytes = shard_bytes
        self._rng = random.Random(f"ideal {seed}")
        self._there: list[int] = []
        self._groups: dict[int, set[int]] = {}
        self._holds: dict[int, set[int]] = {}
        self.bytes = 0

    def group(self, number: int, holders: list[int]) -> None:
        self._groups[number] = set(holders)
        for node in holders:
            self._holds.setdefault(node, set()).add(number)

    def came(self, node: int) -> None:
        insort(self._there, node)

    def left(self, node: int) -> None:
        del self._there[bisect_left(self._there, node)]
        for number in sorted(self._holds.pop(node, ())):
            holders = self._groups[number]
            holders.discard(node)
            if len(holders) < self._r:
                self._restore(number, holders)

    def _restore(self, number: int, holders: set[int]) -> None:
        missing = min(self._n, len(self._there)) - len(holders)
        self.bytes += (self._k + missing) * self._shard_bytes
        while missing:
            node = self._rng.choice(self._there)
            if node not in holders:
                holders.add(node)
                self._holds.setdefault(node, set()).add(number)
                missing -= 1


HEAD = ("run", "nodes", "k/n", "left", "lost", "late", "alarms", "reads %", "p50 s", "p99 s", "repairs", "doubled", "GB", "x least")


def table(rows: list[tuple[str, Result]]) -> str:
    """A Markdown table, one line a run."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name, found in rows:
        fields = (
            name, found.nodes, f"{found.k}/{found.n}", found.left, len(found.lost), len(found.late), found.alarmed,
            f"{100 * found.reads.share():.3f}", f"{found.reads.quantile(0.5):.2f}", f"{found.reads.quantile(0.99):.2f}", found.repairs,
            found.doubled, f"{found.traffic.total() / 1e9:.3g}", f"{found.ratio():.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, fields)) + " |")
    return "\n".join(lines)
