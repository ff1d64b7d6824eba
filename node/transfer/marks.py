"""How far each group of a fetch to files has come, so that a fetch that was killed goes on there.

A mark counts a group's plain bytes in place from its beginning: 8 bytes in a file beside the files, written after the bytes themselves,
so that a mark never leads the bytes (what a kill finds under way is in `leftovers.py`). Nothing is synced: after a loss of power a mark may
promise too much. That is why a mark is a hint and no proof: each file is compared with the manifest before it gets its
name, and what doesn't hold is fetched again. Rejected: hashing what is written a second time (a quarter of a fetch's CPU
seconds), syncing before each mark (the disk's pace instead of the network's), marks by shard and leaf (the bytes of a window can't be
decoded before k shards have it, and undecoded bytes would be written twice).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from protocol.errors import BadInput, StorageFull

MAGIC = b"MFMARKS1"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_WIDTH = 8


class Marks:
    """The file: magic, the model's id, a mark for each group. Of one model: another's marks mean nothing here."""

    def __init__(self, fd: int, groups: int) -> None:
        self.fd, self._groups = fd, groups

    @classmethod
    def create(cls, path: Path, model: bytes, groups: int) -> Marks:
        fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        os.pwrite(fd, MAGIC + model + bytes(_WIDTH * groups), 0)
        return cls(fd, groups)

    @classmethod
    def existing(cls, path: Path, model: bytes, groups: int) -> Marks | None:
        """None when there are none, or of another model."""
        try:
            fd = os.open(path, _FLAGS)
        except OSError:
            return None
        head = MAGIC + model
        if len(model) == 32 and os.fstat(fd).st_size == len(head) + _WIDTH * groups and os.pread(fd, len(head), 0) == head:
            return cls(fd, groups)
        os.close(fd)
        return None

    def place(self, group: int) -> int:
        """Where the group's mark stands in the file."""
        assert 0 <= group < self._groups
        return len(MAGIC) + 32 + _WIDTH * group

    def of(self, group: int) -> int:
        return read_mark(self.fd, self.place(group))

    def set(self, group: int, done: int) -> None:
        os.pwrite(self.fd, done.to_bytes(_WIDTH, "little"), self.place(group))

    def close(self) -> None:
        os.close(self.fd)


def read_mark(fd: int, place: int) -> int:
    return int.from_bytes(os.pread(fd, _WIDTH, place), "little")


class Mark:
    """One group's, moved on by who writes the group. Writes may come in any order; only what has no gap before it counts."""

    def __init__(self, fd: int, place: int, done: int = 0) -> None:
        if min(place, done) < 0:
            raise BadInput("fetch: a mark at a negative place")
        self._fd, self._place, self._done = fd, place, done
        self._later: dict[int, int] = {}
        self._lock = threading.Lock()

    def wrote(self, at: int, end: int) -> None:
        """Bytes [at, end) of the group are in place."""
        with self._lock:
            self._later[at] = max(end, self._later.get(at, 0))
            before = self._done
            while following := [begin for begin in self._later if begin <= self._done]:
                self._done = max(self._done, *(self._later.pop(begin) for begin in following))
            if self._done > before:
                self._keep()

    def _keep(self) -> None:
        try:
            os.pwrite(self._fd, self._done.to_bytes(_WIDTH, "little"), self._place)
        except OSError as error:
            raise StorageFull(f"writing the fetched group failed: {error.strerror}", hint="free some space on that disk") from error
