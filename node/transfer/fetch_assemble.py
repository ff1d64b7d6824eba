"""Windows of k shards into plain bytes of the group: recover, open segments from their pieces, write.

Called from an executor's thread, one window after the other. A piece may lie across two windows, never three: it has at most
a little over 256 KiB.

A segment's digest isn't checked here. Its leaves hold what its signer committed to, the cipher that it was sealed under that
digest; whether these are the model's bytes only the manifest can say, and whoever asked compares all of them with it before use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from erasure.cipher import SLACK
from erasure.code import Code
from erasure.segment import open_scattered
from node.transfer.fetch_board import Shape
from node.transfer.sink import Sink
from node.transfer.slots import Slot
from node.transfer.windows import WINDOW
from protocol import limits
from protocol.encoding import Encoding

ROOMS_KEPT = 4
ROOM_MOST = 2 * limits.MIB


class Workroom:
    """Rooms for a plain segment, kept for the next group: fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self._rooms: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """One of at least this size."""
        for number, room in enumerate(self._rooms):
            if len(room) >= size:
                return self._rooms.pop(number)
        return bytearray(size)

    def give_back(self, room: bytearray) -> None:
        if len(self._rooms) < ROOMS_KEPT and len(room) <= ROOM_MOST:
            self._rooms.append(room)


def _first_segment(record: Encoding, done: int) -> tuple[int, int, int]:
    """(number, offset in the group, offset in a shard) of the first segment that isn't whole in the group's first `done` bytes."""
    number = at = piece_at = 0
    while number < len(record.segments) and at + record.segments[number].plain <= done:
        at, piece_at = at + record.segments[number].plain, piece_at + record.piece_length(number)
        number += 1
    return number, at, piece_at


def shard_offset(record: Encoding, done: int) -> int:
    """Where reading begins in each shard when `done` bytes of the group are in place."""
    return _first_segment(record, done)[2]


class Assembler:
    """Writes the group to `sink` as its windows come, but for the segments whole in its first `done` bytes."""

    def __init__(self, record: Encoding, shape: Shape, sink: Sink, room: Workroom, secret: bytes, done: int = 0) -> None:
        self._record = record
        self._shape = shape.beginning(shard_offset(record, done))
        self._sink = sink
        self._room = room
        self._secret = secret
        self._code = Code(record.k, len(record.roots))
        self._lengths = record.piece_lengths()
        self._segment, self._at, self._piece_at = _first_segment(record, done)
        self._before: dict[int, Slot] = {}
        self._parity: list[Slot] = []
        self._plain = room.take(SLACK + max((segment.plain for segment in record.segments), default=0))

    def end(self) -> list[Slot]:
        """The slots still held; nothing else may be called after it."""
        free = [*self._before.values(), *self._parity]
        self._before, self._parity = {}, []
        if self._plain:
            self._room.give_back(self._plain)
            self._plain = bytearray()
        return free

    def window(self, window: int, got: Mapping[int, Slot], spare: list[Slot]) -> list[Slot]:
        """Writes what this window completes; returns the slots free again. `spare` holds one per data shard missing in `got`."""
        start, size = self._shape.first_leaf(window) * limits.LEAF, self._shape.window_length(window)
        rows = self._rows(got, spare, size)
        end = start + size
        while self._segment < len(self._lengths) and self._piece_at + self._lengths[self._segment] <= end:
            self._write(start, rows)
        free, parity = [*self._before.values(), *self._parity], [slot for shard, slot in got.items() if shard >= self._record.k]
        # With a segment still open, what was received of it must outlive a kill; what was recovered from it wouldn't.
        self._before, self._parity = rows, parity if self._piece_at < end else []
        return free if self._parity else free + parity

    def _rows(self, got: Mapping[int, Slot], spare: list[Slot], size: int) -> dict[int, Slot]:
        """The k data shards' bytes of this window by number."""
        rows = {shard: slot for shard, slot in got.items() if shard < self._record.k}
        missing = {shard: spare.pop() for shard in range(self._record.k) if shard not in rows}
        self._code.recover(
            {shard: slot.view[:size] for shard, slot in got.items()},
            {shard: slot.view[:size] for shard, slot in missing.items()},
        )
        return rows | missing

    def _write(self, start: int, rows: Mapping[int, Slot]) -> None:
        index = self._segment
        segment = self._record.segments[index]
        room = memoryview(self._plain)[: segment.plain + SLACK]
        self._sink.write(open_scattered(self._record, index, self._pieces(start, rows), room, self._secret), self._at)
        self._at += segment.plain
        self._piece_at += self._lengths[index]
        self._segment += 1

    def _pieces(self, start: int, rows: Mapping[int, Slot]) -> Iterator[memoryview]:
        """The data pieces of the segment in order, each where it lies: its head may be the tail of the window before."""
        length = self._lengths[self._segment]
        # Windows follow each other without a gap, so what is early ends with its window.
        early = max(0, min(length, start - self._piece_at))
        tail, begin = self._piece_at - (start - WINDOW), max(0, self._piece_at - start)
        for shard in range(self._record.k):
            if early:
                yield self._before[shard].view[tail : tail + early]
            yield rows[shard].view[begin : begin + length - early]
