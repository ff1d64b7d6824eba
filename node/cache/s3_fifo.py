"""S3-FIFO, for comparison: J. Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. Counted in bytes.

A small queue of a tenth takes what is new; what isn't asked for again there goes soon, its name staying in a ghost queue for a
while; the rest moves to the main queue, which gives a second chance to what was asked for meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping

SMALL_SHARE = 0.1
MOST = 3
"""The counter's two bits."""


class S3Fifo:
    def __init__(self, limit: int) -> None:
        self._small_limit = SMALL_SHARE * limit
        self._main_limit = limit - self._small_limit
        self._small: OrderedDict[str, int] = OrderedDict()
        self._main: OrderedDict[str, int] = OrderedDict()
        self._ghost: OrderedDict[str, int] = OrderedDict()
        self._count: dict[str, int] = {}
        self._small_bytes = self._ghost_bytes = 0

    def asked(self, key: str, size: int, now: float) -> None:
        if key in self._count:
            self._count[key] = min(MOST, self._count[key] + 1)

    def added(self, key: str, size: int, now: float) -> None:
        self._count[key] = 0
        if key in self._ghost:
            self._ghost_bytes -= self._ghost.pop(key)
            self._main[key] = size
        else:
            self._small[key] = size
            self._small_bytes += size

    def removed(self, key: str) -> None:
        self._count.pop(key, None)
        self._main.pop(key, None)
        if key in self._small:
            size = self._small.pop(key)
            self._small_bytes -= size
            self._remember(key, size)

    def victim(self, held: Mapping[str, int], pinned: Collection[str], now: float) -> str | None:
        if all(key in pinned for key in held):
            return None
        while True:
            able = any(key not in pinned for key in self._small), any(key not in pinned for key in self._main)
            from_small = able[0] and (self._small_bytes > self._small_limit or not able[1])
            key = self._small_victim() if from_small else self._main_victim()
            if key is None:
                continue
            if key not in pinned:
                return key
            self._requeue(key)

    def _small_victim(self) -> str | None:
        key, size = next(iter(self._small.items()))
        if self._count[key] <= 1:
            return key
        del self._small[key]
        self._small_bytes -= size
        self._main[key] = size
        self._count[key] = 0
        return None

    def _main_victim(self) -> str | None:
        key, _size = next(iter(self._main.items()))
        if self._count[key] == 0:
            return key
        self._main.move_to_end(key)
        self._count[key] -= 1
        return None

    def _requeue(self, key: str) -> None:
        """A pinned one stands at the end of its queue again."""
        (self._small if key in self._small else self._main).move_to_end(key)
        if key in self._small and all(self._count[other] <= 1 for other in self._small):
            self._count[key] = MOST

    def _remember(self, key: str, size: int) -> None:
        self._ghost[key] = size
        self._ghost_bytes += size
        while self._ghost_bytes > self._main_limit and self._ghost:
            self._ghost_bytes -= self._ghost.popitem(last=False)[1]
