"""Room for sequences: which slot of which stage, and how many bytes are promised to whom. Pure accounting: no memory is touched here.

A sequence is admitted with room for all positions it may reach, so that nothing which has begun ever runs out of memory. What a
finished one leaves may stay: the next request with the same beginning takes the slot over and computes only the rest. Such leftovers
yield to any sequence that needs their bytes or slots, the longest unused first, and they are few, since some runners compute over
the places between. Rejected: pages shared between sequences (a table to read through in every kernel; here a slot is one place).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.errors import Busy

MAX_SEQUENCES = 256
KEPT = 8
"""Leftovers per stage."""
WORTH = 16
"""Positions in common from which a leftover is worth taking over."""


@dataclass(frozen=True)
class Place:
    """`reused`: positions that the slot holds already."""

    stage: str
    slot: int
    size: int
    reused: int = 0


@dataclass(frozen=True)
class _Leftover:
    stage: str
    slot: int
    size: int
    owner: str
    tokens: tuple[int, ...]


class KVPool:
    """`drop(stage, slot)` is called for each leftover that yields."""

    def __init__(self, drop: Callable[[str, int], None], kept: int = KEPT) -> None:
        self._drop = drop
        self._kept = kept
        self._places: dict[str, Place] = {}
        self._left: OrderedDict[tuple[str, int], _Leftover] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes promised to running sequences."""
        return sum(place.size for place in self._places.values())

    @property
    def left(self) -> int:
        """Bytes of leftovers."""
        return sum(one.size for one in self._left.values())

    def __len__(self) -> int:
        return len(self._places)

    def reserve(self, session: str, stage: str, size: int, capacity: int, owner: str | None = None, tokens: Sequence[int] = ()) -> Place:
        """A slot with `size` bytes, of `capacity` for all; `Busy` when running sequences leave no room.

        What a leftover of `owner` holds of `tokens` is taken over.
        """
        if len(self._places) >= MAX_SEQUENCES:
            raise Busy(f"{MAX_SEQUENCES} sequences are open here, the most allowed", details={"retry_after": 5})
        free = capacity - self.used
        if size > free:
            raise Busy(
                f"no room for this sequence: {size / 1e6:.1f} MB needed, {max(free, 0) / 1e6:.1f} MB free for keys and values",
                hint="a shorter context, a greater --max-memory or a little patience would do",
                details={"retry_after": 5},
            )
        found, reused = self._match(stage, owner, tokens)
        if found is not None:
            del self._left[found.stage, found.slot]
        self.shrink(capacity - self.used - size)
        slot = found.slot if found is not None else self._free_slot(stage)
        self._places[session] = place = Place(stage, slot, size, reused)
        return place

    def release(self, session: str, owner: str | None = None, tokens: Sequence[int] = (), size: int = 0) -> Place | None:
        """Gives the room back; what was computed of `tokens` stays as a leftover of `size` bytes where an owner is named."""
        place = self._places.pop(session, None)
        if place is None:
            return None
        if owner is None or len(tokens) < WORTH or not self._kept:
            self._drop(place.stage, place.slot)
            return place
        self._left[place.stage, place.slot] = _Leftover(place.stage, place.slot, min(size, place.size), owner, tuple(tokens))
        mine = [key for key in self._left if key[0] == place.stage]
        for key in mine[: -self._kept]:
            self._yield(key)
        return place

    def shrink(self, room: int) -> None:
        """Leftovers go until they take at most `room` bytes."""
        while self._left and self.left > max(room, 0):
            self._yield(next(iter(self._left)))

    def forget_stage(self, stage: str) -> None:
        for key in [key for key in self._left if key[0] == stage]:
            self._yield(key)

    def _yield(self, key: tuple[str, int]) -> None:
        del self._left[key]
        self._drop(*key)

    def _match(self, stage: str, owner: str | None, tokens: Sequence[int]) -> tuple[_Leftover | None, int]:
        """The leftover with the most positions in common; the last token is always computed anew, for its logits."""
        best, most = None, 0
        for one in self._left.values():
            if one.stage == stage and one.owner == owner:
                common = min(_common(one.tokens, tokens), len(tokens) - 1)
                if common >= WORTH and common > most:
                    best, most = one, common
        return best, most

    def _free_slot(self, stage: str) -> int:
        """The lowest; a leftover yields where all are taken."""
        taken = {place.slot for place in self._places.values() if place.stage == stage}
        taken |= {one.slot for one in self._left.values() if one.stage == stage}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)
