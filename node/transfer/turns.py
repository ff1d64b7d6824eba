"""Groups take turns at being read: in the order in which they were asked for, the next when little of those under way is still to come.

Groups read side by side share the line, so those begun together end together, and then all wait together for the next ones to
begin. In turns, one is ending while another is in full flow. What is asked for early has its grants, its connections and its
place in memory by the time its turn comes.
"""

from __future__ import annotations

import asyncio
from collections import deque

from protocol import limits

LEFT_AT_MOST = 32 * limits.MIB
"""Bytes still to come of the groups under way, above which no other begins."""

WAIT_AT_MOST = 0.5
"""Seconds: a group whose holders give nothing must not keep the others."""


class Turns:
    def __init__(self) -> None:
        self._left: dict[object, int] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, group: object, size: int) -> None:
        """Returns when the group's turn has come; `size` bytes of it are to come. `leave` afterwards, in any case."""
        if self._waiting or self._full():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout(WAIT_AT_MOST):
                    await turn
            except TimeoutError:
                pass
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
        self._left[group] = size
        self._next()

    def came(self, group: object, count: int) -> None:
        """So many bytes of it have come."""
        if group in self._left:
            self._left[group] -= count
            self._next()

    def leave(self, group: object) -> None:
        self._left.pop(group, None)
        self._next()

    def _full(self) -> bool:
        return sum(left for left in self._left.values() if left > 0) > LEFT_AT_MOST

    def _next(self) -> None:
        """One at a time: it comes in before another is let in."""
        while self._waiting and not self._full():
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
