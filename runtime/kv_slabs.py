"""Where keys and values of many sequences lie, so that one multiplication covers many of them and padding stays bounded.

A slab holds up to 32 sequences of similar length, all layers: [2, layers, places, kv_heads, room, head_dim]. A sequence
begins in the slab with the least room that takes it and moves on when it outgrows it (rooms grow by about a third, so a
position moves a few times in all). A step multiplies over the places of a slab that are taken.

On a CPU a slab is an anonymous mapping: what no position was written to takes no memory, whatever the room, and what a
sequence leaves is given back to the kernel at once (which also forgets it). So memory is by the formula `token_bytes`
times length, rounded up to pages. Rejected: one room for all (a short sequence pays for the longest), pages of 16 positions
with a table (vLLM's; torch has no kernel on a CPU that reads through the table), closing holes by moving the last (copies a
sequence whenever one ends; a hole costs its share of one multiplication until the next sequence fills it).
"""

from __future__ import annotations

import heapq
import mmap
from dataclasses import dataclass, field
from math import prod

import torch

from protocol.errors import Busy, Conflict

ROOMS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
PLACES = 32
"""Of a slab, where its bytes allow: many small slabs would be many small multiplications."""
SLAB = 256 * 1024 * 1024
"""Bytes that a slab of several places may reserve."""


@dataclass(frozen=True)
class Shape:
    """What a position takes: [layers, kv_heads, head_dim] twice."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device = field(default=torch.device("cpu"))

    @property
    def token_bytes(self) -> int:
        width: int = self.dtype.itemsize
        return 2 * self.layers * self.kv_heads * self.head_dim * width


class Slab:
    """`kv` [2, layers, places, kv_heads, room, head_dim], all zeros where nothing was written."""

    def __init__(self, shape: Shape, places: int, room: int) -> None:
        self.room, self.places = room, places
        self.free = list(range(places))
        size = (2, shape.layers, places, shape.kv_heads, room, shape.head_dim)
        self._mapping: mmap.mmap | None = None
        with torch.inference_mode(False):  # else it could be written in inference mode only, and a release comes from anywhere
            if shape.device.type == "cpu":
                self._mapping = mmap.mmap(-1, prod(size) * shape.dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self.kv = torch.frombuffer(self._mapping, dtype=shape.dtype).view(size)
            else:
                self.kv = torch.zeros(size, dtype=shape.dtype, device=shape.device)
        self.address = self.kv.data_ptr()
        sides, layers, each = (stride * shape.dtype.itemsize for stride in self.kv.stride()[:3])
        self.strides = sides, layers, each
        """In bytes, of its first three dimensions."""

    @property
    def top(self) -> int:
        """Places up to the last that is taken."""
        free = set(self.free)
        return next((index + 1 for index in range(self.places - 1, -1, -1) if index not in free), 0)

    def wipe(self, index: int) -> None:
        """Forgets a place; its memory goes back where it is whole pages."""
        stride = self.kv.stride(2) * self.kv.itemsize
        if self._mapping is None or stride % mmap.PAGESIZE:
            self.kv[:, :, index].zero_()
            return
        for number in range(self.kv.shape[0] * self.kv.shape[1]):
            self._mapping.madvise(mmap.MADV_DONTNEED, (number * self.places + index) * stride, stride)


@dataclass(slots=True)
class Place:
    """Where a sequence lies, and how many positions of it count."""

    slab: Slab
    index: int
    length: int = 0


class Slabs:
    """Places by slot. Room is made when it is needed; `Busy` when the machine has no more."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.places: dict[int, Place] = {}
        self._slabs: dict[int, list[Slab]] = {}

    def reach(self, slot: int, positions: int) -> Place:
        """The slot's place, with room for `positions`; what it held moves along."""
        place = self.places.get(slot)
        if place is not None and place.slab.room >= positions:
            return place
        slab = self._slab(_room(positions))
        moved = Place(slab, heapq.heappop(slab.free))
        if place is not None:
            moved.length = length = place.length
            slab.kv[:, :, moved.index, :, :length] = place.slab.kv[:, :, place.index, :, :length]
            self._leave(place)
        self.places[slot] = moved
        return moved

    def follow(self, slot: int, position: int, count: int) -> Place:
        """As `reach`, for `count` positions from `position` on; `Conflict` where they don't follow what the slot holds."""
        held = self.places.get(slot)
        if position > (0 if held is None else held.length) or count < 1:
            raise Conflict(f"slot {slot} can't take {count} positions from {position} on")
        return self.reach(slot, position + count)

    def crop(self, slot: int, position: int) -> None:
        """What lies at and beyond `position` doesn't count any more; `Conflict` where less is held."""
        place = self.places.get(slot)
        held = 0 if place is None else place.length
        if position > held:
            raise Conflict(f"slot {slot} holds {held} positions, it can't go back to {position}")
        if place is not None:
            place.length = position

    def release(self, slot: int) -> None:
        place = self.places.pop(slot, None)
        if place is not None:
            self._leave(place)

    def _leave(self, place: Place) -> None:
        slab = place.slab
        heapq.heappush(slab.free, place.index)
        if len(slab.free) < slab.places:
            slab.wipe(place.index)
        else:
            self._slabs[slab.room].remove(slab)

    def _slab(self, room: int) -> Slab:
        """One with a free place, the first made first."""
        slabs = self._slabs.setdefault(room, [])
        for slab in slabs:
            if slab.free:
                return slab
        places = max(1, min(PLACES, SLAB // (room * self.shape.token_bytes)))
        slabs.append(self._make(places, room))
        return slabs[-1]

    def _make(self, places: int, room: int) -> Slab:
        """As many places as the machine's limits let it reserve."""
        while True:
            try:
                return Slab(self.shape, places, room)
            except (OSError, MemoryError, RuntimeError) as error:
                if places == 1:
                    raise Busy(f"no memory for {room} positions of keys and values") from error
                places //= 2


def _room(positions: int) -> int:
    for room in ROOMS:
        if room >= positions:
            return room
    step = 1 << (positions - 1).bit_length() - 2
    return -(-positions // step) * step
