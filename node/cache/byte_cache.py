"""A cache bounded in bytes, with pins, whose policy says what goes. Pure: it keeps names and sizes; whose bytes they are frees them.

Three policies share it: LRU here, S3-FIFO (s3_fifo.py) and the predictor (predictor.py), which also says what to load before it is
asked for. What is pinned, because it is in use or its owner wants it kept, counts but never goes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from protocol.errors import BadInput


class Policy(Protocol):
    """Told of everything, asked what goes. `now` in Unix seconds: hours of the day matter to some."""

    def asked(self, key: str, size: int, now: float) -> None:
        """A request, whether `key` is held or not."""

    def added(self, key: str, size: int, now: float) -> None: ...

    def removed(self, key: str) -> None: ...

    def victim(self, held: Mapping[str, int], pinned: Collection[str], now: float) -> str | None:
        """What to remove next; None when all that is held is pinned."""


class ByteCache:
    """`limit` bytes. A thing larger than that isn't held."""

    def __init__(self, limit: int, policy: Policy) -> None:
        if limit < 0:
            raise BadInput("a cache's limit is a number of bytes")
        self.limit = limit
        self._policy = policy
        self._held: dict[str, int] = {}
        self._pins: Counter[str] = Counter()
        self.used = 0
        self.hits = 0
        self.misses = 0

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def held(self) -> Mapping[str, int]:
        return self._held

    def ask(self, key: str, size: int, now: float) -> bool:
        """Whether it is held; counts and remembers the request."""
        self._policy.asked(key, size, now)
        hit = key in self._held
        self.hits += hit
        self.misses += not hit
        return hit

    def add(self, key: str, size: int, now: float) -> list[str]:
        """Holds it; what had to go for it, which may be itself where everything else is worth more or pinned."""
        if size < 0:
            raise BadInput("a size is a number of bytes")
        if key in self._held:
            return []
        if size > self.limit:
            return [key]
        self._held[key] = size
        self.used += size
        self._policy.added(key, size, now)
        return self._shrink(now, last=key)

    def drop(self, key: str) -> None:
        """Gone for another reason. Nothing where it isn't held."""
        size = self._held.pop(key, None)
        if size is not None:
            self.used -= size
            self._policy.removed(key)

    def pin(self, key: str) -> None:
        """Once more: as many `unpin`s let it go."""
        self._pins[key] += 1

    def unpin(self, key: str) -> None:
        self._pins[key] -= 1
        if self._pins[key] <= 0:
            del self._pins[key]

    def resize(self, limit: int, now: float) -> list[str]:
        """Another limit; what goes."""
        self.limit = limit
        return self._shrink(now)

    def _shrink(self, now: float, last: str | None = None) -> list[str]:
        """Pinned things may keep it above the limit; then `last`, the newest, isn't held."""
        gone: list[str] = []
        while self.used > self.limit:
            victim = self._policy.victim(self._held, self._pins.keys(), now)
            if victim is None and last in self._held and last not in self._pins:
                victim = last
            if victim is None:
                return gone
            self.drop(victim)
            gone.append(victim)
        return gone


class LRU:
    """What wasn't asked for longest goes."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def asked(self, key: str, size: int, now: float) -> None:
        if key in self._order:
            self._order.move_to_end(key)

    def added(self, key: str, size: int, now: float) -> None:
        self._order[key] = None

    def removed(self, key: str) -> None:
        self._order.pop(key, None)

    def victim(self, held: Mapping[str, int], pinned: Collection[str], now: float) -> str | None:
        return next((key for key in self._order if key not in pinned), None)
