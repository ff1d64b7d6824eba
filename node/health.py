"""How a node is, in one word a part, from its figures. Pure: figures and `now` in, status and reason out.

    healthy    it does what it is for; of the storage that is believed only after an end-to-end probe a moment ago
    degraded   it answers, and something that it needs is short, or nobody has seen for a while that it works
    unhealthy  it was tried and doesn't

The worst part is the node's status, and its reason the node's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"
_ORDER = (HEALTHY, DEGRADED, UNHEALTHY)
FRESH = 60.0
"""Seconds for which a probe is taken at its word: three of them fit in."""
FEW, MANY = 3, 10
"""Failed answers within a minute below which nothing is concluded: a few may be one caller's model; answers from which half tells much."""


@dataclass(frozen=True)
class Verdict:
    """`reason` None of what is healthy."""

    status: str = HEALTHY
    reason: str | None = None


@dataclass(frozen=True)
class Probed:
    """The last end-to-end probe: `at` Unix seconds; `fault` what went wrong."""

    at: float
    passed: bool
    fault: str | None = None


def storage(probe: Probed | None, free: int, quota: int, known: int, alive: int, now: float) -> Verdict:
    """Of the shard store and the network behind it. Bytes `free` of `quota`; peers `known`, and `alive` among them."""
    if probe is None:
        return Verdict(DEGRADED, "no end-to-end probe has run yet")
    if not probe.passed:
        return Verdict(UNHEALTHY, f"the end-to-end probe failed: {probe.fault or 'no reason told'}")
    age = now - probe.at
    if age >= FRESH:
        return Verdict(DEGRADED, f"the last end-to-end probe was {age:.0f} s ago")
    if known and not alive:
        return Verdict(DEGRADED, f"none of the {known} peers known answers")
    if quota > 0 and free <= 0:
        return Verdict(DEGRADED, "there is no room left for shards")
    return Verdict()


def compute(running: bool, failures: int, ended: str, held_back: float, line_full: bool) -> Verdict:
    """Of what runs models. `failures` of its process in a row, `ended` how the last one did; `held_back` seconds until it may start."""
    if not running and held_back > 0:
        return Verdict(UNHEALTHY, f"{ended}; it starts again in {held_back:.0f} s")
    if not running and failures:
        return Verdict(DEGRADED, f"{ended}; it starts again")
    if line_full:
        return Verdict(DEGRADED, "the line for room in memory is full")
    return Verdict()


def registry(unreadable: int) -> Verdict:
    """Of the models known. `unreadable`: groups with a shard here of which too few others can be reached."""
    if unreadable:
        return Verdict(DEGRADED, f"{unreadable} groups of layers can't be read now: too few of their holders answer")
    return Verdict()


def gateway(answered: int, failed: int) -> Verdict:
    """Of the HTTP address, by its answers of the last minute; `failed`: at which it failed itself (status 500). What a model's holders
    can't give just now (503) is no fault of the address."""
    if failed < FEW:
        return Verdict()
    told = f"{failed} of {answered} requests of the last minute failed"
    if answered >= MANY and failed * 2 >= answered:
        return Verdict(UNHEALTHY, told)
    return Verdict(DEGRADED, told) if failed * 10 >= answered else Verdict()


def worst(parts: Iterable[Verdict]) -> Verdict:
    """The first of the worst."""
    return max(parts, key=lambda part: _ORDER.index(part.status), default=Verdict())
