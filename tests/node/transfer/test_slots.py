"""Slots: shared with another mapping of the same memory, bounded, given back."""

from __future__ import annotations

import os

import pytest

from node.transfer import slots as module
from node.transfer.slots import KEPT, SharedMemory, Slots
from node.transfer.windows import WINDOW
from protocol.errors import Busy
from protocol.windows import SIGNATURE


def resident(fd: int) -> int:
    """Bytes of memory that it takes."""
    return os.fstat(fd).st_blocks * 512


def test_what_is_written_here_is_read_in_another_mapping() -> None:
    slots = Slots()
    first, second = slots.take(), slots.take()
    assert first.number != second.number
    assert len(first.view) == WINDOW + SIGNATURE
    first.view[:] = b"\x01" * len(first.view)
    second.view[:] = b"\x02" * len(second.view)
    other = SharedMemory(os.dup(slots.memory().fd))
    assert bytes(other.slot(first.number).view) == bytes(first.view)
    assert bytes(other.slot(second.number).view) == bytes(second.view)


def test_a_slot_given_back_serves_again() -> None:
    slots = Slots()
    slot = slots.take()
    slots.give_back(slot)
    assert slots.take() is slot


def test_beyond_what_is_kept_memory_goes_back() -> None:
    slots = Slots()
    taken = [slots.take() for _ in range(KEPT + 10)]
    for slot in taken:
        slot.view[:] = b"\x01" * len(slot.view)
    before = resident(slots.memory().fd)
    for slot in taken:
        slots.give_back(slot)
    assert slots.free == KEPT
    assert before - resident(slots.memory().fd) >= 9 * WINDOW
    assert len({slots.take().number for _ in range(KEPT + 10)}) == KEPT + 10


def test_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    slots = Slots()
    taken = [slots.take() for _ in range(3)]
    with pytest.raises(Busy):
        slots.take()
    slots.give_back(taken[0])
    assert slots.take() is taken[0]
