"""Room for sequences: which slot of which stage, and how many bytes are promised to whom. Pure accounting: no memory is touched here.

A sequence is admitted with room for all positions it may reach, so that nothing which has begun ever runs out of memory. What a
finished one leaves may stay: the next request with the same beginning takes the slot over and computes only the rest. Such leftovers
yield to any sequence that needs their bytes or slots, the longest unused first, they are few, since some runners compute over the
places between, and they go after KEPT_SECONDS in any case. A reply made here is found by its tokens; a stage mostly sees none, and what
it keeps is found by the name that its entry gave it, of whom at most half of a stage's leftovers are. Rejected: pages shared between
sequences (a table to read through in every kernel; here a slot is one place).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.errors import Busy

MAX_SEQUENCES = 256
KEPT = 8
"""Leftovers per stage."""
KEPT_SECONDS = 600.0
"""For which one stays."""
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
    name: str
    positions: int
    until: float


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

    def of(self, stage: str) -> tuple[int, int]:
        """Bytes promised to running sequences of one stage, and of its leftovers."""
        running = sum(place.size for place in self._places.values() if place.stage == stage)
        return running, sum(one.size for one in self._left.values() if one.stage == stage)

    def __len__(self) -> int:
        return len(self._places)

    def reserve(
        self,
        session: str,
        stage: str,
        size: int,
        capacity: int,
        owner: str | None = None,
        tokens: Sequence[int] = (),
        *,
        after: str = "",
        positions: int = 0,
        now: float = 0.0,
    ) -> Place:
        """A slot with `size` bytes, of `capacity` for all; `Busy` when running sequences leave no room.

        What a leftover of `owner` holds of `tokens` is taken over, or what one named `after` holds of its first `positions`.
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
        self.expire(now)
        found, reused = self._named(stage, owner, after, positions) if after else self._match(stage, owner, tokens)
        if found is not None:
            del self._left[found.stage, found.slot]
        self.shrink(capacity - self.used - size)
        slot = found.slot if found is not None else self._free_slot(stage)
        self._places[session] = place = Place(stage, slot, size, reused)
        return place

    def release(self, session: str, owner: str | None = None, tokens: Sequence[int] = (), size: int = 0, now: float = 0.0) -> Place | None:
        """Gives the room back; what was computed of `tokens` stays as a leftover of `size` bytes where an owner is named."""
        return self._release(session, owner, len(tokens), size, now, tokens=tuple(tokens))

    def leave(self, session: str, owner: str, name: str, positions: int, size: int, now: float = 0.0) -> Place | None:
        """As `release`: the first `positions` stay under a name."""
        mine = [key for key, one in self._left.items() if one.name and (key[0], one.owner) == (self._stage_of(session), owner)]
        for key in mine[: len(mine) + 1 - max(self._kept // 2, 1)]:
            self._yield(key)
        return self._release(session, owner, positions, size, now, name=name)

    def expire(self, now: float) -> None:
        """Leftovers whose time is over go."""
        for key in [key for key, one in self._left.items() if one.until <= now]:
            self._yield(key)

    def _release(
        self, session: str, owner: str | None, positions: int, size: int, now: float, *, tokens: tuple[int, ...] = (), name: str = ""
    ) -> Place | None:
        self.expire(now)
        place = self._places.pop(session, None)
        if place is None:
            return None
        if owner is None or positions < WORTH or not self._kept:
            self._drop(place.stage, place.slot)
            return place
        left = _Leftover(place.stage, place.slot, min(size, place.size), owner, tokens, name, positions, now + KEPT_SECONDS)
        self._left[place.stage, place.slot] = left
        mine = [key for key in self._left if key[0] == place.stage]
        for key in mine[: -self._kept]:
            self._yield(key)
        return place

    def _stage_of(self, session: str) -> str | None:
        place = self._places.get(session)
        return None if place is None else place.stage

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

    def _named(self, stage: str, owner: str | None, name: str, positions: int) -> tuple[_Leftover | None, int]:
        one = next((one for one in self._left.values() if (one.stage, one.owner, one.name) == (stage, owner, name)), None)
        return (None, 0) if one is None else (one, min(one.positions, positions))

    def _free_slot(self, stage: str) -> int:
        """The lowest; a leftover yields where all are taken."""
        taken = {place.slot for place in self._places.values() if place.stage == stage}
        taken |= {one.slot for one in self._left.values() if one.stage == stage}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)
