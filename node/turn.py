"""What comes together goes on together.

A crowd's sessions take their steps in the same passes: one message of the worker brings what all of them gave, one bundle of a peer what
all of them get next. Each goes its own way through checks and logs, but where it leaves this process again, sent by itself it would wake
the next worker for a pass of its own: of 64 sessions through two stages every pass then has a few. So the callback that reads several
things at once opens a turn; whoever sends during it keeps what is to be sent, and sends all of it at the turn's end. Outside of a
turn everything goes at once: a single reply waits for nothing.

Rejected: to wait some time for more (each single reply would be later by that), a queue and a task (two turns of the loop more).
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Turn:
    """`with turn:` around what handles several things that came together; it may be entered within itself."""

    def __init__(self) -> None:
        self._depth = 0
        self._ends: dict[Callable[[], None], None] = {}

    def __enter__(self) -> Turn:
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while self._depth == 1 and self._ends:
                end = next(iter(self._ends))
                del self._ends[end]
                end()
        finally:
            self._depth -= 1

    def keeps(self, end: Callable[[], None]) -> bool:
        """Whether a turn is on, at whose end `end` is called once, however often it is named. It must not raise."""
        if self._depth:
            self._ends[end] = None
        return self._depth > 0
