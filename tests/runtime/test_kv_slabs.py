"""Places for sequences: what was written stays through every move, and a place that is left holds nothing."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.errors import Busy
from runtime import kv_slabs
from runtime.kv_slabs import ROOMS, Shape, Slabs

SMALL = Shape(2, 1, 8, torch.float32)


class Machine(RuleBasedStateMachine):
    """Sequences come, grow and leave; each wrote its own number at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.slabs = Slabs(SMALL)
        self.lengths: dict[int, int] = {}

    @rule(slot=st.integers(0, 40), more=st.integers(1, 90))
    def grow(self, slot: int, more: int) -> None:
        length = self.lengths.get(slot, 0)
        place = self.slabs.reach(slot, length + more)
        place.slab.kv[:, :, place.index, :, length : length + more] = slot + 1
        place.length = self.lengths[slot] = length + more

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        slot = data.draw(st.sampled_from(sorted(self.lengths)))
        self.slabs.release(slot)
        del self.lengths[slot]

    @invariant()
    def holds(self) -> None:
        taken = set()
        for slot, length in self.lengths.items():
            place = self.slabs.places[slot]
            assert place.length == length <= place.slab.room
            assert bool((place.slab.kv[:, :, place.index, :, :length] == slot + 1).all())
            assert bool((place.slab.kv[:, :, place.index, :, length:] == 0).all())
            assert place.index < place.slab.top
            taken.add((id(place.slab), place.index))
        assert len(taken) == len(self.lengths)


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("positions", [1, 64, 65, 400, 2048, 2049, 5000, 131072])
def test_room_is_never_more_than_a_half_too_much(positions: int) -> None:
    room = kv_slabs._room(positions)
    assert positions <= room <= max(ROOMS[0], 2 * positions if positions < 129 else positions * 3 // 2)


def test_a_place_that_is_left_is_forgotten() -> None:
    for shape in (SMALL, Shape(3, 4, 64, torch.bfloat16)):
        slabs = Slabs(shape)
        first, second = slabs.reach(0, 64), slabs.reach(1, 64)
        assert first.slab is second.slab
        first.slab.kv[:, :, first.index] = 1
        second.slab.kv[:, :, second.index] = 2
        slabs.release(0)
        assert bool((first.slab.kv[:, :, 0] == 0).all())
        assert bool((first.slab.kv[:, :, 1] == 2).all())


def test_only_what_is_written_takes_memory() -> None:
    """A room of 2048 for 40 positions: pages, not the room."""
    shape = Shape(30, 4, 128, torch.bfloat16)
    before = _resident()
    slabs = Slabs(shape)
    place = slabs.reach(0, 2000)
    place.slab.kv[:, :, place.index, :, :32] = 1
    assert place.slab.kv.nbytes > 100_000_000
    assert _resident() - before < 3 * 32 * shape.token_bytes + 4_000_000


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_fewer_places_where_the_machine_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    real = mmap.mmap

    def scarce(fd: int, size: int, *rest: int) -> mmap.mmap:
        if size > 2 * 64 * SMALL.token_bytes:
            raise OSError(12, "Cannot allocate memory")
        return real(fd, size, *rest)

    monkeypatch.setattr(kv_slabs.mmap, "mmap", scarce)
    slabs = Slabs(SMALL)
    assert slabs.reach(0, 10).slab.places == 2
    with pytest.raises(Busy, match="no memory for 4096 positions"):
        slabs.reach(0, 4096)
    assert slabs.places[0].slab.room == 64
