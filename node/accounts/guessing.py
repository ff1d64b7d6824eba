"""Who has guessed wrong lately, and how long he waits. Pure.

Credentials that can be guessed (passwords, one-time codes) are counted per account and per address, those that can't (keys,
tokens) per address, to keep the log and the processor. After `FREE` misses each next one costs twice the wait of the one before, up to 15
minutes. An account's wait goes by the address too until `SPREAD` misses came from many: one stranger can't lock its owner out, a
thousand of them together still don't get through a dictionary. Bounded: the oldest entries go first.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import Busy

FREE = 5
SPREAD = 50
FIRST_WAIT, LONGEST_WAIT = 2.0, 900.0
FORGET_AFTER = 3_600.0
MOST = 16_384


@dataclass
class _Misses:
    count: int
    last: float
    until: float


class Guessing:
    def __init__(self) -> None:
        self._misses: dict[str, _Misses] = {}

    def check(self, now: float, *who: str) -> None:
        """`Busy` with `retry_after` while any of these has to wait."""
        wait = max((entry.until - now for one in who if (entry := self._misses.get(one))), default=0.0)
        if wait > 0:
            raise Busy("too many wrong guesses", hint="wait, then try again", details={"retry_after": int(wait) + 1})

    def missed(self, now: float, *who: str, free: int = FREE) -> None:
        for one in who:
            entry = self._misses.pop(one, None)
            if entry is None or now - entry.last > FORGET_AFTER:
                entry = _Misses(0, now, 0.0)
            entry.count, entry.last = entry.count + 1, now
            over = entry.count - free
            if over >= 0:
                entry.until = now + min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(over, 16))
            self._misses[one] = entry
        while len(self._misses) > MOST:
            self._misses.pop(next(iter(self._misses)))

    def right(self, *who: str) -> None:
        """A good login forgives that account from that address, not the address as a whole."""
        for one in who:
            self._misses.pop(one, None)
