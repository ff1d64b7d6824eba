"""What a step's frame says of the stages it has been through: microseconds of each, computing and then waiting for its turn there."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.limits import MAX_TIMED_STAGES

UNTOLD = -1


def with_own(before: Sequence[int] | None, index: int, computed: float, waited: float) -> list[int] | None:
    """What the step's frame says after stage `index`, which took so many seconds."""
    if index >= MAX_TIMED_STAGES:
        return list(before) if before else None
    told = list(before or ())[: 2 * index]
    told += [UNTOLD] * (2 * index - len(told))
    return [*told, _micros(computed), _micros(waited)]


def _micros(seconds: float) -> int:
    return min(max(0, round(seconds * 1e6)), (1 << 31) - 1)
