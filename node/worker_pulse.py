"""Notices a worker that is frozen: asked for something, and using no processor time at all.

Problem: a step of a large model takes what it takes, so silence of a worker means nothing, and a deadline that suits the largest
model lets a reply hang for minutes on a stopped process. Choice: a worker that computes uses processor time; one that was stopped (by a
debugger, a container's freezer, a signal) uses none. Two looks apart without a tick between them, with something asked all the while,
end it: it starts anew, and its sessions go on elsewhere. A process that the system says was stopped computes nothing for sure: there two
looks do. A node whose own timer woke late was stopped itself, which tells nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from node.worker import Worker

log = logging.getLogger(__name__)
EVERY = 0.2
STILL = 8
"""Looks in a row without a tick (10 ms) of processor time."""
STOPPED = 2
"""Looks in a row that found it stopped, with something to do."""
BEAT = 0.5
_LATE = 0.3


class WorkerPulse:
    """`run` looks until cancelled; where the system doesn't tell a process' time it does nothing."""

    def __init__(self, worker: Worker, beats: Callable[[float], Awaitable[None]] | None = None) -> None:
        """`beats` is called a few times a second while it computes, with seconds for which that holds."""
        self._worker, self._beats = worker, beats
        self._beaten = 0.0
        self._seen: tuple[int, int] | None = None
        self._still = self._stopped = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(EVERY)
            if loop.time() - before > EVERY + _LATE:
                self._still = self._stopped = 0
            else:
                self.look()
            await self._beat(time.monotonic())

    async def _beat(self, now: float) -> None:
        if self._beats is None or now - self._beaten < BEAT:
            return
        if self._worker.waiting or now - self._worker.computed_at < BEAT:
            self._beaten = now
            await self._beats(2 * BEAT)

    def look(self) -> None:
        """One look; ends a worker that was still for too long."""
        pid = self._worker.pid
        if pid is None or not self._worker.waiting:
            self._seen, self._still, self._stopped = None, 0, 0
            return
        state, ticks = processor_time(pid)
        self._still = self._still + 1 if (pid, ticks) == self._seen and ticks >= 0 else 0
        self._stopped = self._stopped + 1 if state == "T" else 0
        self._seen = pid, ticks
        if self._still >= STILL or self._stopped >= STOPPED:
            self._still = self._stopped = 0
            log.warning("the worker is frozen and is ended", extra={"event": "worker_frozen", "fields": {"pid": pid}})
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processor_time(pid: int) -> tuple[str, int]:
    """The state of a process as Linux tells it ("T": stopped), and its processor time so far with that of its threads, in clock ticks.

    "" and -1 where they can't be known.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return "", -1
