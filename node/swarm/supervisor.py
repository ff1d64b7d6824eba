"""Background tasks of the swarm: kept, logged when they fail, ended together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from protocol.errors import MfError

log = logging.getLogger(__name__)


class Supervisor:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[None] | None:
        """Runs `work` to its end; None when the node is already stopping."""
        if self._stopping:
            work.close()
            return None
        task = asyncio.create_task(self._guard(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1.5)

    async def _guard(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        try:
            await work
        except MfError as error:
            log.info("%s: %s", name, error)
        except Exception:  # boundary: a background task's fault is logged, the node lives on
            log.exception("%s failed", name)
