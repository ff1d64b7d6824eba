"""Transfers give way to replies on the same machine.

Problem: a fetch fills two cores with its reading, checking and writing, and each token of a reply that is computed beside it takes three
times as long. Priorities don't change that: a worker's threads wait for each other hundreds of times a token, and whoever has the core
when one of them wakes keeps it until the clock's next tick, 4 ms. Choice: while the node says that its worker computes, and nobody waits
for any of the groups that are fetched here, the loop of this process rests three times as long as it worked, a few times in each tick.
Between two stages on two cores a step then takes 1.2 ms at the median in place of 1.5, and 5 to 7 at the 99th percentile in place of 7
(what decodes and compares is paced by what reaches it alone); the fetch takes twice as long. A group that a reply waits for is fetched
at full speed.

Rejected: lower priorities (the scheduling class that runs only on idle cores let 2 fetches through where 18 were, and a boundary of two
stages still waited 5 ms at the 99th percentile), a bound on bytes a second (a fast disk and a slow one differ by more than that).
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterator
from contextlib import contextmanager

WORKED = 0.0005
"""Seconds of processor time after which it rests."""
RESTS, MOST = 3.0, 0.006
"""Times as long as it worked, and seconds of a rest at most."""


class Pace:
    """Who is at work, and whether they give way."""

    def __init__(self) -> None:
        self._until = 0.0
        self._hurried = self._behind = 0

    def give_way(self, seconds: float, now: float) -> None:
        """The node's worker computes, and will most likely for so long."""
        self._until = now + seconds

    @contextmanager
    def job(self, *, behind: bool) -> Iterator[None]:
        """While something is fetched; `behind`: nobody waits for it whom a reply wouldn't come before."""
        self._behind, self._hurried = self._behind + behind, self._hurried + (not behind)
        try:
            yield
        finally:
            self._behind, self._hurried = self._behind - behind, self._hurried - (not behind)

    def rest(self, worked: float, now: float) -> float:
        """Seconds to rest after so many of processor time."""
        if worked < WORKED or now >= self._until or self._hurried or not self._behind:
            return 0.0
        return min(RESTS * worked, MOST)


class RestingSelector(selectors.DefaultSelector):
    """What a loop waits by: it rests first, where `pace` says so."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace
        self._since = time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        spent = time.thread_time()
        if spent - self._since >= WORKED:
            if rest := self._pace.rest(spent - self._since, time.monotonic()):
                time.sleep(rest)
            self._since = spent
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
        return ready
