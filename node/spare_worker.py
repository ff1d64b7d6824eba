"""A second worker process that stands ready: started, torch imported, shut in, with nothing loaded.

Problem: when a worker dies in the middle of replies, the next one takes two to three seconds to import torch, more on a busy machine; this
node's own replies wait for their words that long, since it is the worker that spells them. Choice: while a worker runs, another one stands
by and takes over at once; a new one is made some time later, when what the loss cost is over. It takes 260 MiB beside the first one (PSS
measured, 300 by itself), so that there is one only where much memory is free. Rejected: a process that has imported torch and forks each
worker (locks and thread pools of libraries don't survive a fork; the system tells its end to the wrong parent), a worker that keeps the
text apart from the layers (a process more for everybody, all the time).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import psutil  # type: ignore[import-untyped]

from node.channel import Method
from node.turn import Turn
from node.worker_process import Outfit, WorkerProcess
from protocol.errors import MfError

log = logging.getLogger(__name__)
AFTER = 20.0
"""Seconds of a worker's life after which another one stands by."""
FREE = 4 << 30
"""Bytes of free memory from which there is one."""


class SpareWorker:
    """`ask` that there be one soon, `take` it, `stop` all of it."""

    def __init__(self, outfit: Outfit, methods: Mapping[str, Method], turn: Turn) -> None:
        self._outfit, self._methods, self._turn = outfit, methods, turn
        self._ready: WorkerProcess | None = None
        self._making: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._ready is not None and self._ready.alive

    def ask(self) -> None:
        """In a while, unless there is one or one is being made."""
        if not self.ready and (self._making is None or self._making.done()):
            self._making = asyncio.create_task(self._make(), name="spare worker")

    def take(self) -> WorkerProcess | None:
        """It is the asker's from now on."""
        taken, self._ready = (self._ready if self.ready else None), None
        return taken

    async def stop(self) -> None:
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        if self._ready is not None:
            await self._ready.close()
            self._ready = None

    async def _make(self) -> None:
        await asyncio.sleep(AFTER)
        if psutil.virtual_memory().available < FREE:
            return
        try:
            made = await WorkerProcess.spawn(self._outfit, self._methods, self._turn)
        except MfError as error:
            log.info("no worker stands by: %s", error)
            return
        try:
            await made.configure(self._outfit, ahead=True)
        except MfError as error:
            await made.close()
            log.info("no worker stands by: %s", error)
            return
        except asyncio.CancelledError:
            await made.close()
            raise
        self._ready = made
        log.debug("a worker stands by", extra={"event": "spare_worker_ready", "fields": {"pid": made.pid}})
