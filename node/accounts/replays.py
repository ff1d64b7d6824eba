"""Nonces of signed requests, each good once within the time its signature is. Pure; bounded per key."""

from __future__ import annotations

from protocol import limits
from protocol.errors import Busy, Unauthorized

PER_KEY = 50_000
_SWEEP = 60.0
"""Seconds between looks for keys that are idle."""


class Replays:
    """Only requests whose signature holds are entered: nobody fills it with another's key."""

    def __init__(self) -> None:
        self._seen: dict[bytes, dict[bytes, float]] = {}
        self._sweep_at = 0.0

    def enter(self, key: bytes, nonce: bytes, at: int, now: float) -> None:
        """`Unauthorized` for a replay, `Busy` past 50,000 requests of one key within the tolerance of clocks."""
        if now >= self._sweep_at:
            self.forget_idle(now)
            self._sweep_at = now + _SWEEP
        seen = self._seen.setdefault(key, {})
        if nonce in seen:
            raise Unauthorized("the signed request was sent before", hint="sign each request anew, with a nonce of its own")
        while seen and next(iter(seen.values())) < now:
            del seen[next(iter(seen))]
        if len(seen) >= PER_KEY:
            raise Busy("too many signed requests with one key", details={"retry_after": 60})
        # Kept past the last moment at which its time is still accepted; entries end in the order they came, give or take the tolerance.
        seen[nonce] = max(now, at) + 2 * limits.CLOCK_TOLERANCE

    def forget_idle(self, now: float) -> None:
        """Drops keys of which nothing can be replayed any more."""
        self._seen = {key: seen for key, seen in self._seen.items() if max(seen.values(), default=0.0) >= now}
