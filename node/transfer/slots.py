"""Room for windows on their way in, in memory shared with the processes that decode them.

A window is received into a slot, checked there, decoded from there: nothing is copied between the processes, which tell each other
numbers only. The mapping is as large as could ever be needed and takes memory only where a slot was used; what was used stays
warm for the next (a fresh MiB costs more in page faults than the copy into it), beyond `KEPT` it goes back.

In a node the mapping is of a file, and a slot in use is labelled with what is coming into it: whatever a killed process had received but
not yet decoded is there for the next one (`leftovers.py`). That costs nothing while it runs: the file's pages are as warm as a
memfd's. Each slot's room on the disk is taken before it is used, so that a full disk is an error with a name, not a SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

from node.transfer.windows import WINDOW
from protocol import limits
from protocol.errors import Busy, StorageFull
from protocol.windows import SIGNATURE

SIZE = WINDOW + 4 * limits.KIB
"""A window, its signature and its label, in whole pages."""

LABEL = 1024
"""Bytes of a label at most; it stands behind the signature."""

MOST = 4096
KEPT = 128
"""As many as are used at once while large groups are read: memory given back and taken anew costs a page fault for every 4 KiB."""

LEFT_FOR = 7 * 86_400.0
"""Seconds for which a file counts that a killed process left."""

_NO_LABEL = bytes(8)


@dataclass(frozen=True, eq=False)
class Slot:
    """`view` has room for a window and its signature, `label` for what tells of it; zeros at its beginning: nothing."""

    number: int
    view: memoryview
    label: memoryview


class SharedMemory:
    """The mapping itself, made here or handed over as a descriptor, which is kept."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, MOST * SIZE)
        self._view = memoryview(self._map)

    def close(self) -> None:
        """The descriptor; the mapping goes with the last slot."""
        os.close(self.fd)

    def slot(self, number: int) -> Slot:
        start = number * SIZE
        end = start + WINDOW + SIGNATURE
        return Slot(number, self._view[start:end], self._view[end : end + LABEL])

    def forget(self, number: int) -> None:
        """The slot's bytes go, and their memory."""
        if hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE, number * SIZE, SIZE)

    def used(self) -> list[int]:
        """Slots that take memory."""
        found: list[int] = []
        at = 0
        while True:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: none further on
                return found
            found.append(at // SIZE)
            at = (at // SIZE + 1) * SIZE


class Slots:
    """Slots to take and give back. The memory is made at the first use: of the file `path`, else of no file."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.left: set[Slot] = set()
        """Labelled by a process that was killed; known once `memory` was called. `give_back` each that isn't needed."""
        self._memory: SharedMemory | None = None
        self._free: list[Slot] = []
        self._numbers = list(range(MOST - 1, -1, -1))

    @property
    def free(self) -> int:
        """Slots kept for the next."""
        return len(self._free)

    def memory(self) -> SharedMemory:
        """`StorageFull` where the file can't be made."""
        if self._memory is None:
            try:
                self._memory = SharedMemory(self._opened())
            except OSError as error:
                raise _no_room(error) from error
            self._take_up()
        return self._memory

    def take(self) -> Slot:
        if not self._free:
            self.memory()
        if self._free:
            return self._free.pop()
        if not self._numbers:
            raise Busy(f"{MOST} windows are being read at this node", hint="try again in a moment")
        return self._fresh(self._numbers[-1])

    def _fresh(self, number: int) -> Slot:
        memory = self.memory()
        if self.path is not None:
            try:
                os.posix_fallocate(memory.fd, number * SIZE, SIZE)
            except OSError as error:
                raise _no_room(error) from error
        self._numbers.pop()
        return memory.slot(number)

    def give_back(self, slot: Slot) -> None:
        """Nobody reads or writes it any more."""
        slot.label[: len(_NO_LABEL)] = _NO_LABEL
        self.left.discard(slot)
        if len(self._free) < KEPT:
            self._free.append(slot)
            return
        self.memory().forget(slot.number)
        self._numbers.append(slot.number)

    def close(self) -> None:
        """Nothing may be taken after it. The file stays where something is left over in it."""
        if self._memory is not None:
            self._memory.close()
            if self.path is not None and not self.left:
                self.path.unlink(missing_ok=True)
            self._memory = None
            self._free.clear()
            self._numbers.clear()

    def _opened(self) -> int:
        if self.path is None:
            fd = os.memfd_create("windows", os.MFD_CLOEXEC)
        else:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            status = os.fstat(fd)
            if status.st_size != MOST * SIZE or time.time() - status.st_mtime > LEFT_FOR:
                os.ftruncate(fd, 0)
        os.ftruncate(fd, MOST * SIZE)
        return fd

    def _take_up(self) -> None:
        """Of what a process before this one had in use, the labelled slots are kept apart, the others serve again."""
        assert self._memory is not None
        used = self._memory.used() if self.path is not None else []
        self._numbers = [number for number in self._numbers if number not in set(used)]
        for slot in map(self._memory.slot, used):
            if slot.label[: len(_NO_LABEL)] != _NO_LABEL:
                self.left.add(slot)
            else:
                self.give_back(slot)


def _no_room(error: OSError) -> StorageFull:
    return StorageFull(f"no room for what is being received: {error.strerror}", hint="free some space on the data directory's disk")
