"""Windows of k shards into plain bytes of the group: recover, gather pieces into segments, open, write.

Called from an executor's thread, one window after the other. A piece may lie across two windows, never three: it has at most
a little over 256 KiB.

A segment's digest isn't checked here. Its leaves hold what its signer committed to, the cipher that it was sealed under that
digest; whether these are the model's bytes only the manifest can say, and whoever asked compares all of them with it before use.
"""

from __future__ import annotations

from collections.abc import Mapping

from erasure.code import Code
from erasure.segment import open_segment
from node.transfer.fetch_board import WINDOW, Shape
from node.transfer.sink import Sink
from protocol import limits
from protocol.encoding import Encoding

ROOMS_KEPT = 4
ROOM_MOST = 3 * limits.MIB


class Workroom:
    """Pairs of buffers for a segment, sealed and plain, kept for the next group: fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self._pairs: list[tuple[bytearray, bytearray]] = []

    def take(self, sealed: int, plain: int) -> tuple[bytearray, bytearray]:
        """Two of at least these sizes."""
        for number, pair in enumerate(self._pairs):
            if len(pair[0]) >= sealed and len(pair[1]) >= plain:
                return self._pairs.pop(number)
        return bytearray(sealed), bytearray(plain)

    def give_back(self, sealed: bytearray, plain: bytearray) -> None:
        if len(self._pairs) < ROOMS_KEPT and len(sealed) + len(plain) <= ROOM_MOST:
            self._pairs.append((sealed, plain))


class Assembler:
    """Writes the group to `sink` as its windows come."""

    def __init__(self, record: Encoding, shape: Shape, sink: Sink, room: Workroom, secret: bytes) -> None:
        self._record = record
        self._shape = shape
        self._sink = sink
        self._room = room
        self._at = 0
        self._secret = secret
        self._code = Code(record.k, len(record.roots))
        self._lengths = record.piece_lengths()
        self._segment = 0
        self._piece_at = 0
        self._before: dict[int, bytearray] = {}
        self._sealed, self._plain = room.take(
            record.k * max(self._lengths, default=0), max((segment.plain for segment in record.segments), default=0)
        )

    def end(self) -> list[bytearray]:
        """The buffers still held; nothing may be called after it."""
        free = list(self._before.values())
        self._before = {}
        self._room.give_back(self._sealed, self._plain)
        return free

    def window(self, window: int, got: Mapping[int, bytearray], spare: list[bytearray]) -> list[bytearray]:
        """Writes what this window completes; returns the buffers free again. `spare` holds one per data shard missing in `got`."""
        start, size = window * WINDOW, self._shape.window_length(window)
        rows = self._rows(got, spare, size)
        end = start + size
        while self._segment < len(self._lengths) and self._piece_at + self._lengths[self._segment] <= end:
            self._write(start, rows)
        free = [buffer for shard, buffer in got.items() if shard >= self._record.k] + list(self._before.values())
        self._before = rows
        return free

    def _rows(self, got: Mapping[int, bytearray], spare: list[bytearray], size: int) -> dict[int, bytearray]:
        """The k data shards' bytes of this window by number."""
        rows = {shard: buffer for shard, buffer in got.items() if shard < self._record.k}
        missing = {shard: spare.pop() for shard in range(self._record.k) if shard not in rows}
        self._code.recover(
            {shard: memoryview(buffer)[:size] for shard, buffer in got.items()},
            {shard: memoryview(buffer)[:size] for shard, buffer in missing.items()},
        )
        return rows | missing

    def _write(self, start: int, rows: Mapping[int, bytearray]) -> None:
        index, length = self._segment, self._lengths[self._segment]
        segment = self._record.segments[index]
        sealed = memoryview(self._sealed)
        # What of the piece lies in the window before: its tail, since windows follow each other without a gap.
        early = max(0, min(length, start - self._piece_at))
        for shard in range(self._record.k):
            to = shard * length
            if early:
                tail = self._piece_at - (start - WINDOW)
                sealed[to : to + early] = memoryview(self._before[shard])[tail : tail + early]
            begin = max(0, self._piece_at - start)
            sealed[to + early : to + length] = memoryview(rows[shard])[begin : begin + length - early]
        plain = memoryview(self._plain)[: segment.plain]
        open_segment(self._record, index, sealed[: segment.coded], plain, self._secret, check_digest=False)
        self._sink.write(plain, self._at)
        self._at += segment.plain
        self._piece_at += length
        self._segment += 1
