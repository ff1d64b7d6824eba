"""What a stage has sent to the next one, kept so that a dead stage is rebuilt by one prefill instead of running the prompt through all.

Hidden states only, in memory, for as long as the session lives. All logs of a node share one bound: the log that would break it is
given up whole, and a stage behind it is rebuilt from token ids instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protocol import limits

CUT = 256
"""Positions that are sent again, or sent of a prompt, at once."""
LOG_BYTES = 1 * limits.GIB


class LogRoom:
    """Bytes that all logs of this node may take."""

    def __init__(self, most: int = LOG_BYTES) -> None:
        self._free = most

    def take(self, size: int) -> bool:
        if size > self._free:
            return False
        self._free -= size
        return True

    def give(self, size: int) -> None:
        self._free += size


@dataclass(frozen=True)
class Sent:
    """Rows [position, position + count)."""

    position: int
    count: int
    raw: bytes


class StepLog:
    """Rows in order, without a gap from 0 to `end` while `complete`."""

    def __init__(self, room: LogRoom) -> None:
        self._room = room
        self._kept: list[Sent] = []
        self.end = 0
        self.complete = True

    def add(self, position: int, count: int, raw: bytes) -> None:
        if position < self.end:
            self.truncate(position)
        if position != self.end or not self.complete or not self._room.take(len(raw)):
            self.drop()
            return
        self._kept.append(Sent(position, count, raw))
        self.end = position + count

    def truncate(self, position: int) -> None:
        """Forgets rows at and beyond `position`."""
        while self._kept and self._kept[-1].position + self._kept[-1].count > position:
            last = self._kept.pop()
            self._room.give(len(last.raw))
            if last.position < position:
                width = len(last.raw) // last.count
                raw = last.raw[: (position - last.position) * width]
                if self._room.take(len(raw)):
                    self._kept.append(Sent(last.position, position - last.position, raw))
        self.end = min(self.end, position)

    def since(self, position: int) -> Iterator[Sent]:
        """Rows from `position` on, joined to cuts of at most CUT."""
        rows: list[bytes] = []
        start = at = position
        for sent in self._kept:
            width = len(sent.raw) // sent.count
            for row in range(max(0, at - sent.position), sent.count):
                rows.append(sent.raw[row * width : (row + 1) * width])
                at += 1
                if len(rows) == CUT:
                    yield Sent(start, len(rows), b"".join(rows))
                    rows, start = [], at
        if rows:
            yield Sent(start, len(rows), b"".join(rows))

    def drop(self) -> None:
        """Gives the memory back; what is asked of the log from now on has to come from token ids."""
        self._room.give(sum(len(sent.raw) for sent in self._kept))
        self._kept.clear()
        self.complete = False
