"""The owner's quota and the disk's reserve, with reservations, so that two puts can't both take the last room."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from node.store.interface import Space
from protocol import limits
from protocol.errors import StorageFull


def default_reserve(total: int) -> int:
    """Bytes of a disk of `total` that are left free: 5 %, at most 1 GiB."""
    return min(total // 20, limits.GIB)


class Room:
    """Counts bytes. `disk` gives the file system's (total, free) bytes; thread-safe."""

    def __init__(self, quota: int, place: Path | str, disk: Callable[[], tuple[int, int]], reserve: int | None = None) -> None:
        self._quota, self._place, self._disk, self._reserve = quota, place, disk, reserve
        self._used = 0
        self._pending = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Reserves; `StorageFull` says whether the quota or the disk refused, and how much was asked."""
        with self._lock:
            total, free = self._disk()
            reserve = default_reserve(total) if self._reserve is None else self._reserve
            if self._used + size > self._quota:
                raise StorageFull(
                    f"{size} bytes don't fit in the quota: {self._used} of {self._quota} are used ({self._place})",
                    hint="raise --storage, or forget a model",
                )
            if free - self._pending - size < reserve:
                raise StorageFull(
                    f"{size} bytes don't fit on the disk of {self._place}: {free} are free, {reserve} stay free",
                    hint="free some room on the disk",
                )
            self._used += size
            self._pending += size

    def settled(self, size: int) -> None:
        """A reservation's bytes now lie on the disk and are counted there."""
        with self._lock:
            self._pending -= size

    def give_back(self, size: int, pending: bool = False) -> None:
        with self._lock:
            self._used -= size
            if pending:
                self._pending -= size

    def count(self, used: int) -> None:
        """What a start found on the disk."""
        with self._lock:
            self._used, self._pending = used, 0

    def space(self) -> Space:
        with self._lock:
            return Space(quota=self._quota, used=self._used, free=self._disk()[1])
