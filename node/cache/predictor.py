"""What will be asked for soon, from how lately, how often and at which hours it was: what to drop, and what to load ahead.

The expected number of requests for a thing in the next hours is its rate, a count that fades with a half-life of some days, times how
much more it is asked for at this hour than on average. The hours are 24 fading counts, smoothed over their neighbours (who comes at
nine may come at ten) and drawn towards "at any hour" while there are few. A first request says little of a rate, but people who
begin with a model stay with it for a while: recency adds what fades within an hour. A thing is worth its expected requests times
what a miss would cost, a fixed wait and its bytes, per byte it takes.

Loading ahead moves bytes for nothing when it is wrong. So only habits count there, not recency: what has just gone isn't fetched back.
A thing is loaded when it was asked for more than once and is worth clearly more than what would go for it, within the caller's budget.

Rejected: a learned model (LRB, NSDI 2020: millions of requests to train on; here a node sees tens an hour), and chains over models
(the next model depends on who asks, which no node should remember).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from protocol.framing import Record, pack, unpack

HOUR = 3_600.0
DAY = 24 * HOUR
LOOK = 900.0
"""Habits are worked out anew so often; a call of `wanted` in between finds nothing new."""
RATE_HALVES = 5 * DAY
HOURS_HALVE = 10 * DAY
AHEAD = 1.5 * HOUR
"""What is looked at: requests from now until then."""
NEAR = 2.5
"""Hours: requests farther off than this say nothing of an hour."""
NO_HOURS = 12.0
"""So many requests spread over the day are believed of each thing before any is seen."""
FRESH = 0.075
"""Right after a request so many more are expected for its recency..."""
FRESH_HALVES = HOUR
MISS_BYTES = 500e6
"""A miss's fixed cost, as if so many bytes more were loaded."""
CLEARLY = 1.3
HABIT = 1.5
"""Requests, fading, from which on it is one."""
KNOWN_MOST = 4_096


class Habit(Record):
    """What is kept of one thing over a restart; times in whole Unix seconds, counts in thousandths."""

    key: str
    size: int
    at: int
    rate: int
    hours: list[int]


@dataclass
class _Seen:
    """`rate` and `hours` are fading counts as of `at`; `habit` what they come to, worked out for the look numbered `looked`."""

    size: int
    at: float
    rate: float = 0.0
    hours: list[float] = field(default_factory=lambda: [0.0] * 24)
    looked: int = -1
    habit: float = 0.0


class Predictor:
    """A cache's `Policy`, and what is `wanted` in it. Days are cut by UTC, which does for habits anywhere."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def asked(self, key: str, size: int, now: float) -> None:
        seen = self._known(key, size, now)
        passed = max(0.0, now - seen.at)
        fade = math.exp2(-passed / HOURS_HALVE)
        seen.rate = seen.rate * math.exp2(-passed / RATE_HALVES) + 1.0
        seen.hours = [count * fade for count in seen.hours]
        seen.hours[int(now % DAY // HOUR)] += 1.0
        seen.at, seen.size, seen.looked = now, size, -1

    def added(self, key: str, size: int, now: float) -> None:
        self._known(key, size, now)

    def removed(self, key: str) -> None:
        """What is known of it stays: it may come again."""

    def forget(self, key: str) -> None:
        """As if it had never been asked for."""
        self._seen.pop(key, None)

    def victim(self, held: Mapping[str, int], pinned: Collection[str], now: float) -> str | None:
        free = [key for key in held if key not in pinned]
        return min(free, key=lambda key: (self.worth(key, now), key), default=None)

    def wanted(self, held: Mapping[str, int], limit: int, budget: int, now: float, pinned: Collection[str] = ()) -> list[tuple[str, int]]:
        """(key, size) to load ahead, best first, within `budget` bytes: each worth clearly more than what would go for it."""
        others = ((key, seen) for key, seen in self._seen.items() if key not in held and seen.size <= budget and seen.rate >= HABIT)
        ranked = sorted(((self._habit(seen, now) * _cost(seen.size), key, seen.size) for key, seen in others), reverse=True)
        going = sorted((self.worth(key, now), size) for key, size in held.items() if key not in pinned)
        free, gone = limit - sum(held.values()), 0
        found: list[tuple[str, int]] = []
        for worth, key, size in ranked:
            while gone < len(going) and free < size and going[gone][0] * CLEARLY < worth:
                free += going[gone][1]
                gone += 1
            if free < size or not worth:
                break
            if size <= budget:
                free, budget = free - size, budget - size
                found.append((key, size))
        return found

    def worth(self, key: str, now: float) -> float:
        """Cost saved per byte held."""
        seen = self._seen.get(key)
        return 0.0 if seen is None else self.expected(key, now) * _cost(seen.size)

    def expected(self, key: str, now: float) -> float:
        """Requests from now until `AHEAD`."""
        seen = self._seen.get(key)
        if seen is None or not seen.rate:
            return 0.0
        return self._habit(seen, now) + FRESH * math.exp2(-max(0.0, now - seen.at) / FRESH_HALVES)

    def _habit(self, seen: _Seen, now: float) -> float:
        look = int(now // LOOK)
        if seen.looked != look:
            rate = seen.rate * math.exp2(-max(0.0, now - seen.at) / RATE_HALVES) * math.log(2) / RATE_HALVES
            seen.looked, seen.habit = look, rate * AHEAD * _shape(seen.hours, look * LOOK + AHEAD / 2)
        return seen.habit

    def _known(self, key: str, size: int, now: float) -> _Seen:
        if key not in self._seen and len(self._seen) >= KNOWN_MOST:
            for other in sorted(self._seen, key=lambda other: self._habit(self._seen[other], now))[: KNOWN_MOST // 4]:
                del self._seen[other]
        return self._seen.setdefault(key, _Seen(size, now))

    def habits(self) -> list[Habit]:
        """Of all that is known."""
        return [
            Habit(key=key, size=seen.size, at=int(seen.at), rate=round(1e3 * seen.rate), hours=[round(1e3 * count) for count in seen.hours])
            for key, seen in self._seen.items()
        ]

    def restore(self, habits: Iterable[Habit], now: float) -> None:
        """As they were kept; nonsense is left out."""
        for habit in habits:
            if len(habit.hours) == 24 and min(habit.size, habit.at, habit.rate, *habit.hours) >= 0 and len(self._seen) < KNOWN_MOST:
                counts = [count / 1e3 for count in habit.hours]
                self._seen[habit.key] = _Seen(habit.size, min(now, float(habit.at)), habit.rate / 1e3, counts)


def save_habits(predictor: Predictor) -> bytes:
    return pack([msgspec.to_builtins(habit) for habit in predictor.habits()])


def load_habits(predictor: Predictor, data: bytes, now: float, most: int) -> None:
    """`BadInput` for what isn't a list of habits of at most `most` bytes."""
    predictor.restore(unpack(data, list[Habit], "habits", most), now)


def _cost(size: int) -> float:
    """Of a miss, per byte."""
    return 1 + MISS_BYTES / max(1, size)


def _shape(hours: list[float], at: float) -> float:
    """How much more is asked for around `at` than on average: 1 where nothing is known."""
    centre = at % DAY / HOUR
    near = weights = 0.0
    for hour in range(int(centre - NEAR), int(centre + NEAR) + 1):
        weight = max(0.0, 1 - abs(hour + 0.5 - centre) / NEAR)
        near += weight * hours[hour % 24]
        weights += weight
    return (near / weights * 24 + NO_HOURS) / (sum(hours) + NO_HOURS)
