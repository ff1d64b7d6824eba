"""What a stage has sent to the next one, kept so that a dead stage is rebuilt by one prefill instead of running the prompt through all.

Hidden states only, in memory, for as long as the session lives; where it leaves what it computed to the next turn, the log stays with it.
All logs of a node share one bound: those left go first, the oldest before others, then the log that would break it is given up whole, and
a stage behind it is rebuilt from token ids instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from protocol import limits
from runtime.interface import Left

CUT = 256
"""Positions that are sent again, or sent of a prompt, at once."""
LOG_BYTES = 1 * limits.GIB


LEFT_MOST = 64
"""Logs that ended sessions left."""
LEFT_SECONDS = 600.0
"""As long as what they computed stays (runtime/kv_pool.py)."""


class LogRoom:
    """Bytes that all logs of this node may take, and the logs that ended sessions left."""

    def __init__(self, most: int = LOG_BYTES) -> None:
        self._free = most
        self._left: OrderedDict[tuple[str, str], tuple[StepLog, float]] = OrderedDict()

    def leave(self, left: Left, log: StepLog, now: float) -> None:
        """`log` stays under that name, for a while."""
        if (before := self._left.pop((left.owner, left.name), None)) is not None:
            before[0].drop()
        self._left[left.owner, left.name] = log, now + LEFT_SECONDS
        self.expire(now)
        while len(self._left) > LEFT_MOST:
            self._drop_oldest()

    def expire(self, now: float) -> None:
        """Logs whose time is up go."""
        while self._left and next(iter(self._left.values()))[1] <= now:
            self._drop_oldest()

    def resume(self, left: Left | None, positions: int) -> StepLog:
        """The log of a session that has `positions` from the one named: it knows them too where that one's stayed."""
        log, _until = self._left.pop((left.owner, left.name), (None, 0.0)) if left is not None else (None, 0.0)
        if log is None:
            return StepLog(self)
        log.truncate(positions)
        return log

    def _drop_oldest(self) -> None:
        _name, (log, _until) = self._left.popitem(last=False)
        log.drop()

    def take(self, size: int) -> bool:
        while size > self._free and self._left:
            self._drop_oldest()
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
