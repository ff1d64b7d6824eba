"""Publishes whose command has returned because enough was durable, while their last shards are still on their way.

r shards of every group make a model safe; the others are held up by nodes that are slow or full. The command doesn't wait for them, and
they aren't given up either: the work goes on in the daemon, seen in `status`, until each has a home or nobody is left to ask. What has
none then is for repair. It ends early with the node, and with the next publish of the same model, which does the same again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from node.tally import Tally
from protocol.errors import MfError
from protocol.ids import ModelId, model_text

log = logging.getLogger(__name__)
Placing = Sequence[asyncio.Task[None]]


@dataclass
class _Rest:
    """`open` holds what the tasks read from; `total` is the model's shards, all of them."""

    model: ModelId
    name: str
    tally: Tally
    placing: Placing
    open: AsyncExitStack
    total: int
    began: float = field(default_factory=time.monotonic)


class Unfinished:
    def __init__(self) -> None:
        self._rests: dict[ModelId, tuple[_Rest, asyncio.Task[None]]] = {}

    def go_on(self, model: ModelId, name: str, tally: Tally, placing: Placing, opened: AsyncExitStack, total: int) -> None:
        """Takes over the tasks that place the rest, and what they read from, which is closed after them."""
        rest = _Rest(model, name, tally, placing, opened, total)
        log.info("the rest goes on", extra={"event": "publish_goes_on", "fields": _fields(rest)})
        self._rests[model] = rest, asyncio.create_task(self._finish(rest), name=f"rest of {name}")

    def lines(self) -> list[dict[str, Any]]:
        """As `status` shows them."""
        now = time.monotonic()
        return [
            {
                "model_id": model_text(rest.model),
                "name": rest.name,
                "shards": rest.total,
                "durable": rest.tally.shards(),
                "seconds": round(now - rest.began, 1),
            }
            for rest, _task in self._rests.values()
        ]

    async def end(self, model: ModelId) -> None:
        """Stops it, if it goes on, and waits until it has."""
        if model in self._rests:
            rest, task = self._rests[model]
            task.cancel()
            await asyncio.wait([task])
            if model in self._rests:  # cancelled before its first step, it has cleared nothing away
                await self._clear(rest)

    async def close(self) -> None:
        for model in list(self._rests):
            await self.end(model)

    async def _finish(self, rest: _Rest) -> None:
        try:
            await asyncio.wait(rest.placing)
            for fault in (task.exception() for task in rest.placing if not task.cancelled()):
                if fault is not None:
                    shown = None if isinstance(fault, MfError) else fault
                    log.warning("a group of %s got no more shards: %s", rest.name, fault, exc_info=shown)
            log.info("the rest has ended", extra={"event": "publish_rest_ended", "fields": _fields(rest)})
        finally:
            await self._clear(rest)

    async def _clear(self, rest: _Rest) -> None:
        for task in rest.placing:
            task.cancel()
        await asyncio.gather(*rest.placing, return_exceptions=True)
        await rest.open.aclose()
        del self._rests[rest.model]


def _fields(rest: _Rest) -> dict[str, Any]:
    return {"model": model_text(rest.model), "shards": rest.total, "durable": rest.tally.shards()}
