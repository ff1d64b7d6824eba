"""A bound on how often someone may do something. Pure."""

from __future__ import annotations


class TokenBucket:
    """`rate` per second, up to `burst` at once."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, count: float, now: float) -> bool:
        """Takes `count` if they are there; else takes none."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        if count > self._left:
            return False
        self._left -= count
        return True
