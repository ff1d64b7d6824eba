"""The long clock: since when a node is away, and when that means it is gone (design §4, two clocks). Pure: `now` is an argument.

A node that doesn't answer is away within seconds, and nobody asks it for anything. Whether its shards must be replaced is another
question: most absences end by themselves, and a repair that wasn't needed costs k shards of reading. So a holder counts until it is
*gone*: 12 h, or what its own absences so far forecast (a machine that is off every night is gone when it stays away half as long
again as its longest night).

Twelve hours are far too long in a swarm that is losing a tenth of its nodes every hour. The remedy isn't a shorter clock for all,
which would repair every reboot, but two facts kept here and used by `repair.py` where a group is in danger: the rate at which nodes
leave, measured from absences past `grace`; and whether an absence began together with many others. When a tenth of the swarm vanishes
within two minutes it is most likely a cut between us and them, and heals; those absences always get their grace.

Rejected: a survival curve fitted to all absences (it needs a day of history before it beats the two numbers, and is wrong exactly
when the swarm's habits change), and phi-accrual (it answers "does it hear me", which `node/swarm/liveness.py` knows already).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

HOUR = 3_600.0
GONE_AFTER = 12 * HOUR
GRACE = 15 * 60.0
"""Longer than a reboot and than most cuts of a network."""

LONGEST = 36 * HOUR
"""No history makes a clock longer than this."""

KEPT = 8
"""Absences remembered per node."""

ENOUGH_ABSENCES = 2
WINDOW = 2 * HOUR
PRIOR_LEAVERS, PRIOR_HOURS = 0.1, 20.0
"""Believed before anything is measured: so many departures in so many node-hours."""

TOGETHER = 120.0
MANY = 0.1


@dataclass
class _Node:
    away_since: float | None
    met: float
    up_before: bool = False
    up: float = 0.0
    since: float = 0.0
    absences: tuple[float, ...] = ()
    forecast: float | None = None
    """Seconds after which it is gone, by its own absences."""


class Absence(NamedTuple):
    """`seconds` away so far; `gone_after` so many its shards no longer count; `back`: there is reason to expect it back, not just hope.

    The reason is its own history, or that it vanished within two minutes of a tenth of the swarm, less than `grace` ago.
    """

    seconds: float
    gone_after: float
    back: bool


HERE = Absence(0.0, math.inf, True)


class Presence:
    """Every node seen so far. Times in seconds by one clock; `gone_after` is the default for a node without a history."""

    def __init__(self, started: float, gone_after: float = GONE_AFTER) -> None:
        self.default = gone_after
        self.grace = min(GRACE, gone_after)
        self._started = started
        self._nodes: dict[str, _Node] = {}
        self._here = 0
        self._left: deque[tuple[float, str]] = deque()
        self._lately: deque[tuple[float, str]] = deque()
        self._told = 0
        self._many: set[str] = set()
        self._rate: tuple[float, float] | None = None

    def see(self, peer: str, routable: bool, now: float, since: float | None = None) -> None:
        """What the short clock says of a peer; `since` when it last answered, where that is known and before now."""
        node = self._nodes.get(peer)
        if node is None:
            node = self._nodes[peer] = _Node(away_since=now, met=now)
            if not routable:
                node.away_since = now if since is None else min(now, since)
                return
            node.away_since, node.since, node.up_before = None, now, True
            self._here += 1
        elif routable and node.away_since is not None:
            if node.up_before and peer not in self._many:
                self._learn(node, now - node.away_since)
            node.up_before = True
            node.away_since, node.since = None, now
            self._here += 1
            self._many.discard(peer)
        elif not routable and node.away_since is None:
            left = now if since is None else max(node.since, min(now, since))
            node.away_since = left
            node.up += left - node.since
            self._here -= 1
            self._note_leaving(peer, left)

    def forget(self, peer: str) -> None:
        """A node nobody waits for any more."""
        node = self._nodes.pop(peer, None)
        if node is not None and node.away_since is None:
            self._here -= 1
        self._many.discard(peer)

    def away(self, peer: str, now: float) -> float | None:
        """Seconds since the peer last answered: 0 while it is routable, None for one never seen."""
        node = self._nodes.get(peer)
        if node is None:
            return None
        return 0.0 if node.away_since is None else max(now - node.away_since, 1e-9)

    def absence(self, peer: str, now: float) -> Absence | None:
        """`HERE` while the peer is routable; None for one never seen."""
        node = self._nodes.get(peer)
        if node is None:
            return None
        if node.away_since is None:
            return HERE
        seconds = max(now - node.away_since, 1e-9)
        if node.forecast is None:
            return Absence(seconds, self.default, seconds < self.grace and peer in self._many)
        return Absence(seconds, node.forecast, seconds < node.forecast)

    def up_and_seen(self, peer: str, now: float) -> tuple[float, float]:
        """Seconds up, of the seconds since the peer was first met."""
        node = self._nodes.get(peer)
        if node is None:
            return 0.0, 0.0
        return node.up + (now - node.since if node.away_since is None else 0.0), now - node.met

    def leaving_rate(self, now: float) -> float:
        """Departures for good per node and second, over the last two hours: absences that have outlived their grace."""
        if self._rate is None or now - self._rate[0] >= 30:
            self._rate = (now, self._measure(now))
        return self._rate[1]

    def _measure(self, now: float) -> float:
        last = now - self.grace
        first = max(self._started, last - WINDOW)
        while self._left and self._left[0][0] < first:
            self._left.popleft()
        left = {peer for at, peer in self._left if at <= last and (node := self._nodes.get(peer)) and node.away_since == at}
        hours = max(0.0, last - first) / HOUR * (self._here + len(left) / 2)
        return (len(left) + PRIOR_LEAVERS) / (hours + PRIOR_HOURS) / HOUR

    def _learn(self, node: _Node, absence: float) -> None:
        """An absence of the peer's own making: not one we didn't see begin, nor one it shared with many."""
        node.absences = (*node.absences[1 - KEPT :], absence)
        if len(node.absences) >= ENOUGH_ABSENCES:
            node.forecast = min(LONGEST, max(self.grace, 1.5 * max(node.absences)))

    def _note_leaving(self, peer: str, left: float) -> None:
        self._left.append((left, peer))
        self._lately.append((left, peer))
        while self._lately[0][0] < left - TOGETHER:
            self._lately.popleft()
            self._told = max(0, self._told - 1)
        if len(self._lately) >= max(3, MANY * (self._here + len(self._lately))):
            self._many.update(other for _, other in islice(self._lately, self._told, None))
            self._told = len(self._lately)
