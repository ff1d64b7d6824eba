"""What this node uses while something runs: seconds of processor and most memory of its processes, bytes over the network."""

from __future__ import annotations

import asyncio
import contextlib

import psutil  # type: ignore[import-untyped]

from node.traffic import Traffic, counting

EVERY = 0.1


class Consumption:
    """`async with Consumption() as used`: figures are there after the block, to be entered and left by one task. None where the system
    doesn't tell. Processor and memory are the processes', other requests included; `traffic` is of what ran in the block alone.
    """

    def __init__(self) -> None:
        self.cpu_seconds: float | None = None
        self.peak_memory: int | None = None
        self.traffic = Traffic()
        self._began = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._counting = contextlib.ExitStack()

    async def __aenter__(self) -> Consumption:
        self._began = self._look()
        self._watching = asyncio.create_task(self._watch())
        self.traffic = self._counting.enter_context(counting())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watching is not None
        self._counting.close()
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        self.cpu_seconds = round(max(0.0, self._look() - self._began), 3)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            self._look()

    def _look(self) -> float:
        """Processor seconds so far of this process and those it started; notes their memory."""
        cpu, memory = 0.0, 0
        here = psutil.Process()
        for process in (here, *here.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu += times.user + times.system
                memory += process.memory_info().rss
        self.peak_memory = max(self.peak_memory or 0, memory) or None
        return cpu
