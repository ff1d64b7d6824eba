"""How much of this node one subject may use: requests an hour, tokens a month, requests at once.

`Allowance` is what the gateway asks before and tells after each request; who the subject is was decided before (an account the owner
knows, or
the address that unknown ones share). `Windows` is the plain implementation; one that counts what a peer has given the swarm can
take its place. Pure: `now` is an argument.

An hour's requests are a bucket that refills evenly: no rush at the full hour, and the wait of a refused one is exact. A
month's tokens are counted after they were made, so one reply may go over the end; those at once are few.
"""

from __future__ import annotations

import calendar
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import Busy

HOUR = 3_600.0


class AllowanceSpent(Busy):
    """`details`: which window, its limit, and `retry_after` in seconds."""

    code = "rate_limited"


@dataclass(frozen=True)
class Tier:
    """None: no limit."""

    name: str
    requests_per_hour: int | None
    tokens_per_month: int | None
    at_once: int | None


TIERS = {
    tier.name: tier
    for tier in (
        Tier("free", 100, 100_000, 5),
        Tier("known", 100, 100_000, 5),
        Tier("contributor", 1_000, 2_000_000, 20),
        Tier("supporter", 10_000, 50_000_000, 100),
        Tier("unlimited", None, None, None),
    )
}


@dataclass(frozen=True)
class Standing:
    """What the headers tell: `limit` None where there is none; `reset` seconds until the bucket is full; `window` seconds."""

    limit: int | None
    remaining: int
    reset: int
    window: int = int(HOUR)


class Allowance(Protocol):
    def begin(self, subject: str, tier: str, now: float) -> Standing:
        """Takes one request; `AllowanceSpent` when an hour's, a month's or those at once are used up. Then `end` must follow."""

    def end(self, subject: str, tokens: int, now: float) -> None:
        """The request is over and cost so many tokens."""

    def standing(self, subject: str, tier: str, now: float) -> Standing:
        """Without taking any."""

    def month(self, subject: str, now: float) -> int:
        """Tokens used in this calendar month (UTC)."""

    def at_once(self, tier: str) -> int:
        """Requests side by side; 32 where there is no limit."""


@dataclass
class _Use:
    spent: float = 0.0
    """Requests taken and not yet refilled."""
    at: float = 0.0
    running: int = 0
    month: str = ""
    tokens: int = 0


class Windows:
    """Implements `Allowance` in memory for at most 65,536 subjects; the idle ones go first, those that spent least by the order of use."""

    MOST = 65_536

    def __init__(self, tiers: dict[str, Tier] | None = None) -> None:
        self._tiers = tiers or TIERS
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    def begin(self, subject: str, tier: str, now: float) -> Standing:
        bounds, use = self._tiers[tier], self._use(subject, now)
        _refill(use, bounds, now)
        self._check(bounds, use, now)
        use.running += 1
        use.spent += 1
        return _standing(bounds, use)

    def end(self, subject: str, tokens: int, now: float) -> None:
        use = self._use(subject, now)
        use.running = max(0, use.running - 1)
        use.tokens += tokens

    def standing(self, subject: str, tier: str, now: float) -> Standing:
        bounds, use = self._tiers[tier], self._use(subject, now)
        _refill(use, bounds, now)
        return _standing(bounds, use)

    def month(self, subject: str, now: float) -> int:
        return self._use(subject, now).tokens

    def at_once(self, tier: str) -> int:
        return self._tiers[tier].at_once or 32

    def restore(self, subject: str, tokens: int, now: float) -> None:
        """The month's tokens from before a restart."""
        self._use(subject, now).tokens = tokens

    def tier(self, name: str) -> Tier:
        return self._tiers[name]

    def _check(self, bounds: Tier, use: _Use, now: float) -> None:
        if bounds.at_once is not None and use.running >= bounds.at_once:
            raise _spent("requests at once", bounds.at_once, 1)
        if bounds.requests_per_hour is not None and use.spent + 1 > bounds.requests_per_hour:
            over = use.spent + 1 - bounds.requests_per_hour
            raise _spent("requests an hour", bounds.requests_per_hour, over * HOUR / bounds.requests_per_hour)
        if bounds.tokens_per_month is not None and use.tokens >= bounds.tokens_per_month:
            raise _spent("tokens a month", bounds.tokens_per_month, _next_month(now) - now)

    def _use(self, subject: str, now: float) -> _Use:
        use = self._uses.get(subject)
        if use is None:
            use = self._uses[subject] = _Use(at=now)
            self._make_room()
        self._uses.move_to_end(subject)
        month = time.strftime("%Y-%m", time.gmtime(now))
        if use.month != month:
            use.month, use.tokens = month, 0
        return use

    def _make_room(self) -> None:
        while len(self._uses) > self.MOST:
            idle = next((name for name, use in self._uses.items() if use.running == 0), None)
            if idle is None:
                return
            del self._uses[idle]


def _refill(use: _Use, bounds: Tier, now: float) -> None:
    if bounds.requests_per_hour is not None:
        use.spent = max(0.0, use.spent - max(0.0, now - use.at) * bounds.requests_per_hour / HOUR)
    use.at = now


def _standing(bounds: Tier, use: _Use) -> Standing:
    limit = bounds.requests_per_hour
    if limit is None:
        return Standing(None, 0, 0)
    return Standing(limit, max(0, int(limit - use.spent)), int(use.spent * HOUR / limit) + (use.spent > 0))


def _spent(what: str, limit: int, wait: float) -> AllowanceSpent:
    return AllowanceSpent(
        f"the allowance is used up: {limit} {what}",
        hint="wait, or ask the node's owner for another tier",
        details={"window": what, "limit": limit, "retry_after": int(wait) + 1},
    )


def _next_month(now: float) -> float:
    at = time.gmtime(now)
    year, month = (at.tm_year + 1, 1) if at.tm_mon == 12 else (at.tm_year, at.tm_mon + 1)
    return float(calendar.timegm((year, month, 1, 0, 0, 0)))
