"""What a killed process had received of shards: used by the next read of them, so that a kill costs no more than the leaf under way.

A slot in use is labelled with the leaves that are coming into it and their digests (from a list that gave the encoding's root). After
a kill the bytes themselves say how far they came: a leaf counts when it hashes to its digest. Nothing is promised by a label,
so nothing need be written in any order or synced.

Rejected: writing each window to a file as it comes (a copy of every byte, for the sake of a kill), smaller windows (more signatures and
calls for the same bytes), marks per leaf (a store for each of 4,000 leaves of 256 MiB, and still to be verified).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from node.transfer.slots import Slot
from protocol import limits
from protocol.encoding import leaf_digests

MAGIC = b"MFWINDOW"
_HEAD = struct.Struct("<8s32sHIH")
_DIGEST = 32
Shard = tuple[bytes, int]
"""Encoding and number."""


def label(slot: Slot, encoding: bytes, shard: int, first: int, digests: bytes) -> None:
    """Leaves from `first` on of this shard are coming into `slot`; their digests, at most a window's."""
    _HEAD.pack_into(slot.label, 0, MAGIC, encoding, shard, first, len(digests) // _DIGEST)
    slot.label[_HEAD.size : _HEAD.size + len(digests)] = digests


class Leftovers:
    """Leaves by shard. `give_back` takes the slots none of whose leaves is needed any more."""

    def __init__(self, give_back: Callable[[Slot], None]) -> None:
        self._give_back = give_back
        self._leaves: dict[Shard, dict[int, tuple[Slot, int]]] = {}
        self._uses: dict[Slot, int] = {}

    def add(self, slot: Slot) -> bool:
        """Takes up a labelled slot; whether its label was one."""
        magic, encoding, shard, first, count = _HEAD.unpack_from(slot.label)
        if magic != MAGIC or not 1 <= count <= limits.WINDOW_LEAVES:
            return False
        leaves = self._leaves.setdefault((encoding, shard), {})
        for place in range(count):
            self._forget(leaves, first + place)
            leaves[first + place] = slot, place
        self._uses[slot] = count
        return True

    def has(self, encoding: bytes, shard: int) -> bool:
        return bool(self._leaves.get((encoding, shard)))

    def count(self, encoding: bytes, shard: int, first: int, length: int) -> int:
        """Whole leaves here, without a gap from `first` on, of a shard of `length` bytes. Those before aren't needed: they go."""
        leaves = self._leaves.get((encoding, shard), {})
        for leaf in [leaf for leaf in leaves if leaf < first]:
            self._forget(leaves, leaf)
        count = 0
        while (found := leaves.get(first + count)) is not None:
            slot, place = found
            digest = slot.label[_HEAD.size + _DIGEST * place : _HEAD.size + _DIGEST * (place + 1)]
            view = slot.view[place * limits.LEAF : place * limits.LEAF + min(limits.LEAF, length - (first + count) * limits.LEAF)]
            if not len(view) or b"".join(leaf_digests(view)) != digest:
                break
            count += 1
        return count

    def move(self, encoding: bytes, shard: int, first: int, into: memoryview) -> bool:
        """Copies leaves that `count` has counted; they aren't here any more then. False where one has gone meanwhile."""
        leaves = self._leaves.get((encoding, shard), {})
        for at in range(0, len(into), limits.LEAF):
            if first + at // limits.LEAF not in leaves:
                return False
            slot, place = leaves[first + at // limits.LEAF]
            size = min(limits.LEAF, len(into) - at)
            into[at : at + size] = slot.view[place * limits.LEAF : place * limits.LEAF + size]
            self._forget(leaves, first + at // limits.LEAF)
        return True

    def drop(self, encoding: bytes) -> None:
        """Nothing of this encoding is needed any more."""
        for shard in [shard for shard in self._leaves if shard[0] == encoding]:
            leaves = self._leaves.pop(shard)
            for leaf in list(leaves):
                self._forget(leaves, leaf)

    def _forget(self, leaves: dict[int, tuple[Slot, int]], leaf: int) -> None:
        found = leaves.pop(leaf, None)
        if found is None:
            return
        slot = found[0]
        self._uses[slot] -= 1
        if not self._uses[slot]:
            del self._uses[slot]
            self._give_back(slot)
