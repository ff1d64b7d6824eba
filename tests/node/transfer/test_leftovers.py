"""Leftovers: leaves that are whole are counted and moved, once; slots go back when none of their leaves is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.transfer import slots as slots_module
from node.transfer.leftovers import Leftovers, label
from node.transfer.slots import LABEL, Slot, Slots
from node.transfer.windows import WINDOW
from protocol import limits
from protocol.encoding import leaf_digests
from protocol.errors import StorageFull
from protocol.windows import SIGNATURE

ENCODING, LEAVES = b"e" * 32, 40
CONTENT = Random(5).randbytes((LEAVES - 1) * limits.LEAF + 77)
DIGESTS = b"".join(leaf_digests(CONTENT))


def slot_of(first: int, whole: int, number: int = 0) -> Slot:
    """A window of CONTENT from leaf `first` on of which `whole` leaves have come, and half of the next."""
    slot = Slot(number, memoryview(bytearray(WINDOW + SIGNATURE)), memoryview(bytearray(LABEL)))
    label(slot, ENCODING, 3, first, DIGESTS[32 * first : 32 * (first + limits.WINDOW_LEAVES)])
    come = CONTENT[first * limits.LEAF : (first + limits.WINDOW_LEAVES) * limits.LEAF][: whole * limits.LEAF + limits.LEAF // 2]
    slot.view[: len(come)] = come
    return slot


def content(first: int, count: int) -> bytes:
    return CONTENT[first * limits.LEAF : (first + count) * limits.LEAF]


@given(ends=st.lists(st.integers(0, 16), min_size=1, max_size=3), before=st.integers(0, 20))
def test_what_came_without_a_gap_is_counted_and_moved(ends: list[int], before: int) -> None:
    given_back: list[Slot] = []
    leftovers = Leftovers(given_back.append)
    slots = [slot_of(16 * number, whole) for number, whole in enumerate(ends)]
    assert all(map(leftovers.add, slots))
    here = [leaf for number, whole in enumerate(ends) for leaf in range(16 * number, 16 * number + whole)]
    if len(ends) == 3 and ends[2] >= 7:
        here = [leaf for leaf in here if leaf < LEAVES] + [LEAVES - 1] * (LEAVES - 1 not in here)  # a short leaf comes with half of one
    expected = next(count for count in range(LEAVES + 1) if before + count not in here)
    count = leftovers.count(ENCODING, 3, before, len(CONTENT))
    assert count == expected
    room = bytearray(len(content(before, count)))
    assert leftovers.move(ENCODING, 3, before, memoryview(room))
    assert bytes(room) == content(before, count)
    assert leftovers.count(ENCODING, 3, before, len(CONTENT)) == 0
    leftovers.drop(ENCODING)
    assert {id(slot) for slot in given_back} == {id(slot) for slot in slots}
    assert len(given_back) == len(slots)


def test_another_shard_has_none() -> None:
    leftovers = Leftovers(lambda slot: None)
    leftovers.add(slot_of(0, 16))
    assert leftovers.has(ENCODING, 3)
    assert not leftovers.has(ENCODING, 2)
    assert leftovers.count(ENCODING, 2, 0, len(CONTENT)) == leftovers.count(b"f" * 32, 3, 0, len(CONTENT)) == 0
    assert not leftovers.move(ENCODING, 2, 0, memoryview(bytearray(5)))


def test_what_was_taken_by_another_reader_isnt_moved() -> None:
    leftovers = Leftovers(lambda slot: None)
    leftovers.add(slot_of(0, 16))
    assert leftovers.count(ENCODING, 3, 0, len(CONTENT)) == 16
    assert leftovers.move(ENCODING, 3, 4, memoryview(bytearray(limits.LEAF)))
    assert not leftovers.move(ENCODING, 3, 0, memoryview(bytearray(16 * limits.LEAF)))


@pytest.mark.parametrize("damage", [lambda label: label[:8], lambda label: label[46:48]], ids=["magic", "count"])
def test_what_isnt_a_label(damage: Callable[[memoryview], memoryview]) -> None:
    slot = slot_of(0, 16)
    where = damage(slot.label)
    where[:] = b"\xff" * len(where)
    assert not Leftovers(lambda slot: None).add(slot)


def test_a_process_finds_what_was_in_use_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "MOST", 16)
    before, after = Slots(), Slots()
    before.path = after.path = tmp_path / "windows"
    used, free, unlabelled = before.take(), before.take(), before.take()
    for slot in (used, free):
        label(slot, ENCODING, 3, 0, DIGESTS[:512])
    used.view[:] = b"\x01" * len(used.view)
    before.give_back(free)
    after.memory()
    assert [(slot.number, bytes(slot.view[:5])) for slot in after.left] == [(used.number, b"\x01" * 5)]
    taken = {after.take().number for _ in range(15)}
    assert taken == set(range(16)) - {used.number}
    assert unlabelled.number in taken
    after.close()
    assert (tmp_path / "windows").exists(), "it holds what is left over"
    last = Slots()
    last.path = after.path
    last.memory()
    [left] = last.left
    last.give_back(left)
    last.close()
    assert not (tmp_path / "windows").exists()


def test_old_files_and_others_dont_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(slots_module, "MOST", 16)
    path = tmp_path / "windows"
    slots = Slots()
    slots.path = path
    label(slots.take(), ENCODING, 3, 0, DIGESTS[:512])
    os.utime(path, (1, 1))
    old = Slots()
    old.path = path
    old.memory()
    assert not old.left
    path.write_bytes(b"something else")
    other = Slots()
    other.path = path
    other.take()
    assert path.stat().st_size == 16 * slots_module.SIZE


def test_a_full_disk_is_an_error_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, at: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    slots = Slots()
    slots.path = tmp_path / "windows"
    monkeypatch.setattr(slots_module.os, "posix_fallocate", full)
    with pytest.raises(StorageFull, match="No space left"):
        slots.take()
    monkeypatch.undo()
    assert slots.take().number == 0
