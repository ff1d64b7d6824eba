"""Room for windows on their way in, in memory shared with the processes that decode them.

A window is received into a slot, checked there, decoded from there: nothing is copied between the processes, which tell each other
numbers only. The mapping is as large as could ever be needed and takes memory only where a slot was used; what was used stays
warm for the next (a fresh MiB costs more in page faults than the copy into it), beyond `KEPT` it goes back.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from node.transfer.windows import WINDOW
from protocol import limits
from protocol.errors import Busy
from protocol.windows import SIGNATURE

SIZE = WINDOW + 4 * limits.KIB
"""A window and its signature, in whole pages."""

MOST = 4096
KEPT = 128
"""As many as are used at once while large groups are read: memory given back and taken anew costs a page fault for every 4 KiB."""


@dataclass(frozen=True, eq=False)
class Slot:
    """`view` has room for a window and its signature."""

    number: int
    view: memoryview


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
        return Slot(number, self._view[number * SIZE : number * SIZE + WINDOW + SIGNATURE])

    def forget(self, number: int) -> None:
        """The slot's bytes go, and their memory."""
        if hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE, number * SIZE, SIZE)


class Slots:
    """Slots to take and give back. The memory is made at the first use."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._free: list[Slot] = []
        self._numbers = list(range(MOST - 1, -1, -1))

    @property
    def free(self) -> int:
        """Slots kept for the next."""
        return len(self._free)

    def memory(self) -> SharedMemory:
        if self._memory is None:
            fd = os.memfd_create("windows", os.MFD_CLOEXEC)
            os.ftruncate(fd, MOST * SIZE)
            self._memory = SharedMemory(fd)
        return self._memory

    def take(self) -> Slot:
        if self._free:
            return self._free.pop()
        memory = self.memory()
        if not self._numbers:
            raise Busy(f"{MOST} windows are being read at this node", hint="try again in a moment")
        return memory.slot(self._numbers.pop())

    def give_back(self, slot: Slot) -> None:
        """Nobody reads or writes it any more."""
        if len(self._free) < KEPT:
            self._free.append(slot)
            return
        self.memory().forget(slot.number)
        self._numbers.append(slot.number)

    def close(self) -> None:
        """Nothing may be taken after it."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
            self._free.clear()
            self._numbers.clear()
