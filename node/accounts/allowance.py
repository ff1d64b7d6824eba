"""How much of this node one subject may use: requests an hour, tokens a month, requests at once.

`Allowance` is what the gateway asks before and tells after each request; who the subject is was decided before (an account the owner
knows, or
the address that unknown ones share). `Windows` is the plain implementation; one that counts what a peer has given the swarm can
take its place. Pure: `now` is an argument.

A request that makes several replies (choices, prompts, items of a batch, models compared) takes one of the hour for each, and runs as
many of them side by side as places are free: they are what costs the machine, and else a hundred requests were ten thousand.

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
    """None: no limit. `weight` its share of the engine beside others'; the greater `priority` of those that wait goes first."""

    name: str
    requests_per_hour: int | None
    tokens_per_month: int | None
    at_once: int | None
    weight: float = 1.0
    priority: int = 0


TIERS = {
    tier.name: tier
    for tier in (
        Tier("free", 100, 100_000, 5),
        Tier("known", 100, 100_000, 5),
        Tier("contributor", 1_000, 2_000_000, 20, 2.0, 1),
        Tier("supporter", 10_000, 50_000_000, 100, 4.0, 1),
        Tier("unlimited", None, None, None, 4.0, 2),
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

    def end(self, subject: str, now: float) -> None:
        """What took a place, by `begin` or `enter`, is over."""

    def charge(self, subject: str, tier: str, count: int, now: float) -> Standing:
        """Takes so many more requests of the hour for parts of one that runs, all or none; `AllowanceSpent` as `begin`."""

    def enter(self, subject: str, tier: str, now: float) -> bool:
        """One more place among those at once for such a part, if one is free; `end` must follow then."""

    def spend(self, subject: str, tokens: int, now: float) -> None:
        """So many tokens were read or made."""

    def standing(self, subject: str, tier: str, now: float) -> Standing:
        """Without taking any."""

    def month(self, subject: str, now: float) -> int:
        """Tokens used in this calendar month (UTC)."""


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
        if bounds.at_once is not None and use.running >= bounds.at_once:
            raise _spent("requests at once", bounds.at_once, 1)
        standing = self.charge(subject, tier, 1, now)
        use.running += 1
        return standing

    def end(self, subject: str, now: float) -> None:
        use = self._use(subject, now)
        use.running = max(0, use.running - 1)

    def charge(self, subject: str, tier: str, count: int, now: float) -> Standing:
        bounds, use = self._tiers[tier], self._use(subject, now)
        _refill(use, bounds, now)
        self._check(bounds, use, count, now)
        use.spent += count
        return _standing(bounds, use)

    def enter(self, subject: str, tier: str, now: float) -> bool:
        bounds, use = self._tiers[tier], self._use(subject, now)
        if bounds.at_once is not None and use.running >= bounds.at_once:
            return False
        use.running += 1
        return True

    def spend(self, subject: str, tokens: int, now: float) -> None:
        self._use(subject, now).tokens += tokens

    def standing(self, subject: str, tier: str, now: float) -> Standing:
        bounds, use = self._tiers[tier], self._use(subject, now)
        _refill(use, bounds, now)
        return _standing(bounds, use)

    def month(self, subject: str, now: float) -> int:
        return self._use(subject, now).tokens

    def restore(self, subject: str, tokens: int, now: float) -> None:
        """The month's tokens from before a restart."""
        self._use(subject, now).tokens = tokens

    def tier(self, name: str) -> Tier:
        return self._tiers[name]

    def _check(self, bounds: Tier, use: _Use, count: int, now: float) -> None:
        if bounds.requests_per_hour is not None and use.spent + count > bounds.requests_per_hour:
            over = use.spent + count - bounds.requests_per_hour
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
