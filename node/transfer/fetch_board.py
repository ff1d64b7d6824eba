"""What has arrived of a group, window by window.

The code works on each byte column by itself, so a window of 1 MiB of every shard is enough to decode: whichever k shards of a
window come first are taken, and a holder that dies or stalls costs one window, never what it has given before. Readers may run
ahead of what is assembled by a bounded number of windows; that is the bound on memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from node.transfer.slots import Slot, Slots
from node.transfer.windows import WINDOW
from protocol import limits
from protocol.encoding import Encoding, leaf_count

MEMORY = 48 * limits.MIB
"""Bytes of windows held at once, as long as k leaves room for two windows of every lane."""


@dataclass(frozen=True)
class Shape:
    """The numbers of one encoding that readers need: `length` bytes and `leaves` of a shard, `windows` of up to 1 MiB from leaf `origin`
    on, where reading begins."""

    encoding: bytes
    k: int
    length: int
    leaves: int
    windows: int
    roots: list[bytes]
    origin: int = 0

    @classmethod
    def of(cls, encoding: bytes, record: Encoding) -> Shape:
        length = record.shard_length()
        return cls(encoding, record.k, length, leaf_count(length), -(-length // WINDOW), record.roots)

    def beginning(self, offset: int) -> Shape:
        """The same for reading from `offset` of the shards on."""
        origin = offset // limits.LEAF
        return replace(self, origin=origin, windows=-(-(self.length - origin * limits.LEAF) // WINDOW))

    def first_leaf(self, window: int) -> int:
        return self.origin + window * limits.WINDOW_LEAVES

    def window_length(self, window: int) -> int:
        return min(WINDOW, self.length - self.first_leaf(window) * limits.LEAF)


class Signal:
    """Wakes who waits for one kind of change: with one for all, every window that came would wake every reader."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, timeout: float | None = None) -> None:
        """Returns at the next wake, or after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.add(future)
        timer = None if timeout is None else loop.call_later(timeout, _settle, future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if timer is not None:
                timer.cancel()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Board:
    """`front` is the lowest window that lacks a shard, `assembled` how many are written out, `leaves` the checked leaf lists.
    `came(bytes)` is called for every window that is taken."""

    def __init__(self, shape: Shape, slots: Slots, came: Callable[[int], None] = lambda count: None) -> None:
        self.front = 0
        self.assembled = 0
        self.leaves: dict[int, bytes] = {}
        self._shape = shape
        self._ahead = max(2, min(4, MEMORY // (WINDOW * shape.k) - 3))
        self._got: dict[int, dict[int, Slot]] = {}
        self._seconds: dict[int, list[float]] = {}
        self._ready: deque[tuple[int, dict[int, Slot]]] = deque()
        self._slots, self._tell_came = slots, came
        self._came, self._written, self._lanes = Signal(), Signal(), Signal()

    def wants(self, window: int, shard: int) -> bool:
        got = self._got.get(window, {})
        return window >= self.front and shard not in got and len(got) < self._shape.k

    def seconds_taken(self, window: int) -> list[float]:
        """How long the shards that are here of a window took to read, each."""
        return self._seconds.get(window, [])

    def deliver(self, window: int, shard: int, slot: Slot, seconds: float | None) -> None:
        """Takes a verified window of a shard; what isn't needed any more goes back to the pool. `seconds`: what reading it took, None where
        not all of it was read."""
        if not self.wants(window, shard):
            self.give_back(slot)
            return
        self._got.setdefault(window, {})[shard] = slot
        if seconds is not None:
            self._seconds.setdefault(window, []).append(seconds)
        self._tell_came(self._shape.window_length(window))
        while len(self._got.get(self.front, ())) == self._shape.k:
            self._ready.append((self.front, self._got.pop(self.front)))
            self._seconds.pop(self.front, None)
            self.front += 1
            self._came.wake()
        if self.front >= self._shape.windows:
            self.wake()

    async def room(self, window: int) -> None:
        while window >= self.assembled + self._ahead:
            await self._written.wait()

    async def next_ready(self) -> tuple[int, dict[int, Slot]]:
        """The next window in order with its k shards."""
        while not self._ready:
            await self._came.wait()
        return self._ready.popleft()

    def window_assembled(self) -> None:
        self.assembled += 1
        self._written.wake()

    def slot(self) -> Slot:
        """Room for a window and its signature."""
        return self._slots.take()

    def give_back(self, slot: Slot) -> None:
        """The caller doesn't use it any more."""
        self._slots.give_back(slot)

    async def change(self, timeout: float) -> None:
        """Returns when a reader has ended or the last window has come, or after `timeout` seconds."""
        await self._lanes.wait(timeout)

    def wake(self) -> None:
        """A reader has ended."""
        self._lanes.wake()
