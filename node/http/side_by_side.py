"""Several generations behind one request: `n` choices of a chat, the prompts of a completion.

Each runs in a task of its own, since what a generation opens must be closed by the task that opened it; the engine batches them. The
first failure ends all: half of the choices is not what was asked for.

Each is a request of the caller's allowance, and they are taken all together or not at all. As many run at the same time as places are
free for the caller; the others follow when one of these has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from node.gateway import Finished, Gateway, GenerationRequest, Piece, Planned, Queued
from node.http.generation import OnQueued, generation
from node.http.metering import LOCAL, METER, Meter
from node.http.metrics import Metrics
from node.http.settings import HttpSettings

Event = Planned | Queued | Piece | Finished


class SideBySide:
    """`planned` of those that run or ran; after `events()`, `planned` and `ends` one of each request, in their order."""

    def __init__(self, count: int, width: int) -> None:
        """`width`: how many run at the same time."""
        self._turns = asyncio.Semaphore(width)
        self._width = min(count, width)
        self._queue: asyncio.Queue[tuple[int, Event] | asyncio.Task[None]] = asyncio.Queue()
        self._planned: dict[int, Planned] = {}
        self._ends: dict[int, Finished] = {}
        self._count = count
        self.on_queued: OnQueued | None = None
        self._early: list[tuple[int, Event]] = []

    @property
    def planned(self) -> list[Planned]:
        return [self._planned[index] for index in sorted(self._planned)]

    @property
    def count(self) -> int:
        return self._count

    def prompt_tokens(self, choices: int) -> int:
        """Of the prompts known so far, each once though it has several choices."""
        return sum(self._planned[index].prompt_tokens for index in range(0, self._count, choices) if index in self._planned)

    @property
    def ends(self) -> list[Finished]:
        return [self._ends[index] for index in range(self._count)]

    async def events(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """(number of the request, what came), until the last has finished."""
        while len(self._ends) < self._count:
            index, event = self._early.pop(0) if self._early else await self._next()
            if isinstance(event, Planned):
                self._planned[index] = event
            if isinstance(event, Finished):
                self._ends[index] = event
            if isinstance(event, Queued) and self.on_queued is not None:
                await self.on_queued(event.position)
            if not isinstance(event, Planned | Queued):
                yield index, event

    async def begin(self) -> None:
        """Returns when all that run at first are planned: until then the HTTP status can still say what is wrong."""
        while len(self._planned) < self._width:
            index, event = await self._next()
            if isinstance(event, Planned):
                self._planned[index] = event
            else:
                self._early.append((index, event))

    async def _next(self) -> tuple[int, Event]:
        while isinstance(item := await self._queue.get(), asyncio.Task):
            item.result()
        return item

    async def run(self, index: int, gateway: Gateway, wanted: GenerationRequest, metrics: Metrics, settings: HttpSettings) -> None:
        async with self._turns:
            async with generation(gateway, wanted, metrics, settings) as reply:
                self._queue.put_nowait((index, reply.planned))
                reply.on_queued = partial(self._wait_in_line, index)
                async for piece in reply.pieces():
                    self._queue.put_nowait((index, piece))
            self._queue.put_nowait((index, reply.end()))

    async def _wait_in_line(self, index: int, position: int) -> None:
        self._queue.put_nowait((index, Queued(position)))

    def over(self, task: asyncio.Task[None]) -> None:
        self._queue.put_nowait(task)


@asynccontextmanager
async def side_by_side(
    gateway: Gateway, wanted: Sequence[GenerationRequest], metrics: Metrics, settings: HttpSettings
) -> AsyncIterator[SideBySide]:
    """All of them, once the first are planned; leaving the block ends those that still run. `AllowanceSpent` where they are too many."""
    meter = METER.get() or Meter(LOCAL)
    meter.charge(len(wanted) - 1)
    with meter.side_by_side(len(wanted)) as width:
        async with _together(gateway, wanted, metrics, settings, width) as together:
            yield together


@asynccontextmanager
async def _together(
    gateway: Gateway, wanted: Sequence[GenerationRequest], metrics: Metrics, settings: HttpSettings, width: int
) -> AsyncIterator[SideBySide]:
    together = SideBySide(len(wanted), width)
    tasks = [asyncio.create_task(together.run(index, gateway, one, metrics, settings)) for index, one in enumerate(wanted)]
    for task in tasks:
        task.add_done_callback(together.over)
    try:
        await together.begin()
        yield together
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
