"""Who waits for room at this node, and for how long at most: beyond that an asker is told when to come back, at once.

The first in line tries; everybody behind waits until it is in or gone, so that a large request isn't overtaken for ever by small ones.
Accounts take turns: whoever has one waiting comes before another's second. Room that comes free, and whoever leaves, wakes the line.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from protocol.errors import Busy

T = TypeVar("T")
MOST = 256
PATIENCE = 60.0
_LOOK = 5.0


class NoRoomNow(Exception):
    """The attempt failed for want of room that others will give back."""


@dataclass(frozen=True, order=True)
class _Place:
    """`turn`: how many of the same account were before it."""

    turn: int
    number: int
    account: str


class WaitingLine:
    """`clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float], most: int = MOST, patience: float = PATIENCE) -> None:
        self._clock, self._most, self._patience = clock, most, patience
        self._places: list[_Place] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._pace: float | None = None
        self._freed_at = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def check(self) -> None:
        """`Busy` when nobody more may wait."""
        if len(self._places) >= self._most:
            raise self._busy(f"{len(self._places)} requests wait for room here, the most allowed", len(self._places) + 1)

    async def enter(self, account: str, attempt: Callable[[], Awaitable[T]], told: Callable[[int], None] | None = None) -> T:
        """What `attempt` gives, tried whenever it's this one's turn and something changed; `Busy` after the line's patience.

        `told` hears its position (1 is next) when it has to wait, and whenever that changes.
        """
        self.check()
        place = _Place(sum(one.account == account for one in self._places), next(self._numbers), account)
        self._places.append(place)
        self._places.sort()
        end, last = self._clock() + self._patience, 0
        try:
            while True:
                self._changed.clear()
                if self._places[0] == place:
                    try:
                        return await attempt()
                    except NoRoomNow:
                        pass
                if told is not None and (now := self._places.index(place) + 1) != last:
                    told(now)
                    last = now
                if self._clock() >= end:
                    ahead = self._places.index(place)
                    raise self._busy(f"no room within {self._patience:g} s, {ahead} requests were before this one", ahead + 1)
                await self._wait(min(_LOOK, end - self._clock()))
        finally:
            self._places.remove(place)
            self.wake()

    def freed(self) -> None:
        """Somebody gave room back."""
        now = self._clock()
        if self._freed_at:
            took = min(now - self._freed_at, self._patience)
            self._pace = took if self._pace is None else 0.8 * self._pace + 0.2 * took
        self._freed_at = now
        self.wake()

    def wake(self) -> None:
        self._changed.set()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._changed.wait()
        except TimeoutError:
            return

    def _busy(self, message: str, position: int) -> Busy:
        """`retry_after` by how often room came free."""
        seconds = max(1, min(round((self._pace or 1.0) * position), 600))
        return Busy(message, hint=f"ask again in {seconds} s", details={"position": position, "retry_after": seconds})
