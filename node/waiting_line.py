"""Who waits for room at this node, and for how long at most: beyond that an asker is told when to come back, at once.

The first in line tries; everybody behind waits until it is in or gone, so that a large request isn't overtaken for ever by small ones.
Accounts take turns: whoever has one waiting comes before another's second. Room that comes free, and whoever leaves, wakes the line.

What makes a whole reply here and a stage of somebody's pipeline stand in the same line. A reply that has begun goes before all others
where this node knows that it has, or trusts whose word that is; else it goes before others of its own account alone, so that a claim that
anybody can make gains nothing from strangers. Peers get a part of the line, so that they don't fill it for the node's own users.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from protocol.errors import Busy, MfError

T = TypeVar("T")
MOST = 256
PEERS_MOST = 128
"""Sessions of one peer that may wait at once."""
PATIENCE = 60.0
_LOOK = 5.0


class NoRoomNow(Exception):
    """The attempt failed for want of room that others will give back; its cause says how much."""


@dataclass(frozen=True)
class Asker:
    """Who wants room, and how it waits.

    `told` hears its position (1 is next) when it has to wait, and whenever that changes. `patience` seconds where they are less than the
    line's; 0: it doesn't wait for room, only for whoever is just being let in, which may take loading. `begun`: its reply has begun, which
    is `believed` or not. `most` of its account may wait at once.
    """

    account: str = ""
    told: Callable[[int], None] | None = None
    patience: float = PATIENCE
    begun: bool = False
    believed: bool = True
    most: int = MOST


PATIENT = Asker()
IMPATIENT = Asker(patience=0.0)


@dataclass(frozen=True, order=True)
class _Place:
    """`turn`: how many of the same account were before it."""

    later: bool
    turn: int
    number: int
    account: str
    begun: bool


class WaitingLine:
    """`clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float], most: int = MOST, patience: float = PATIENCE) -> None:
        self._clock, self._most, self._patience = clock, most, patience
        self._places: list[_Place] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._pace: float | None = None
        self._freed_at = 0.0
        self._stuck = False
        """Whether the first in line found no room."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def full(self) -> bool:
        """Nobody more may wait."""
        return len(self._places) >= self._most

    def check(self) -> None:
        """`Busy` when nobody more may wait."""
        if self.full:
            raise self._busy(f"{len(self._places)} requests wait for room here, the most allowed", len(self._places) + 1)

    async def enter(self, asker: Asker, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives, tried whenever it's this one's turn and something changed; `Busy` after the asker's or the line's
        patience."""
        place = self._place(asker)
        patience = min(asker.patience, self._patience)
        end, last, why = self._clock() + patience, 0, None
        look = _LOOK
        try:
            while True:
                self._changed.clear()
                if self._places[0] == place:
                    try:
                        return await attempt()
                    except NoRoomNow as full:
                        why = full.__cause__
                        self._no_way()
                position = self._places.index(place) + 1
                if patience:
                    look = min(_LOOK, end - self._clock())
                if look <= 0 or (self._stuck and not patience):
                    raise self._no_room(position, patience, why)
                if asker.told is not None and position != last:
                    asker.told(position)
                    last = position
                await self._wait(look)
        finally:
            if self._places[0] == place:
                self._stuck = False
            self._places.remove(place)
            self.wake()

    def freed(self) -> None:
        """Somebody gave room back."""
        now = self._clock()
        if self._freed_at:
            took = min(now - self._freed_at, self._patience)
            self._pace = took if self._pace is None else 0.8 * self._pace + 0.2 * took
        self._freed_at = now
        self._stuck = False
        self.wake()

    def wake(self) -> None:
        self._changed.set()

    def _no_way(self) -> None:
        """The first in line has to wait: those behind who won't are told."""
        if not self._stuck:
            self._stuck = True
            self.wake()

    def _place(self, asker: Asker) -> _Place:
        """Taken; `Busy` where there is none."""
        first = asker.begun and asker.believed
        if not first:
            self.check()
        mine = [one for one in self._places if one.account == asker.account]
        if len(mine) >= asker.most:
            raise self._busy(f"{len(mine)} requests of one asker wait for room here, the most allowed", len(self._places) + 1)
        turn = sum(one.begun for one in mine) if asker.begun else len(mine)
        place = _Place(not first, turn, next(self._numbers), asker.account, asker.begun)
        self._places.append(place)
        self._places.sort()
        return place

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _no_room(self, position: int, patience: float, why: BaseException | None) -> Busy:
        waited = f"no room within {patience:.3g} s" if patience else "no room just now"
        message = f"{waited}, {position - 1} requests were before this one"
        if not isinstance(why, MfError):
            return self._busy(message, position)
        return self._busy(f"{why.message}; {message}", position, why.details)

    def _busy(self, message: str, position: int, details: dict[str, Any] | None = None) -> Busy:
        """`retry_after` by how often room came free."""
        seconds = max(1, min(round((self._pace or 1.0) * position), 600))
        told = {"position": position, "retry_after": seconds}
        return Busy(message, hint=f"ask again in {seconds} s", details=(details or {}) | told)
