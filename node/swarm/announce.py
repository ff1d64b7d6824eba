"""Says in the DHT which models are held here: one key each, at most 10 a second, again at a third of the record's life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from node.swarm.door import Door, model_key
from protocol import limits
from protocol.errors import MfError
from protocol.ids import ModelId, model_text

log = logging.getLogger(__name__)
AGAIN = limits.PROVIDER_LIFETIME / 3
RETRY = 30.0
PAUSE = 0.1
DEADLINE = 10.0


class Announcer:
    def __init__(self, door: Door, monotonic: Callable[[], float]) -> None:
        self._door = door
        self._monotonic = monotonic
        self._due: dict[ModelId, float] = {}
        self._some = asyncio.Event()

    def add(self, model: ModelId) -> None:
        """A model held here; announced soon, unless it has been lately."""
        if model not in self._due:
            self._due[model] = self._monotonic()
            self._some.set()

    def drop(self, model: ModelId) -> None:
        if self._due.pop(model, None) is not None:
            self._door.withdraw(model_key(model))

    def hurry(self) -> None:
        """The door has opened: what couldn't be announced is tried at once."""
        now = self._monotonic()
        self._due = {model: min(due, now) if due - now <= RETRY else due for model, due in self._due.items()}
        self._some.set()

    async def run(self) -> None:
        while True:
            self._some.clear()
            await self._announce_due()
            wait = min(self._due.values(), default=self._monotonic() + AGAIN) - self._monotonic()
            try:
                async with asyncio.timeout(max(PAUSE, wait)):
                    await self._some.wait()
            except TimeoutError:
                continue

    async def _announce_due(self) -> None:
        for model in [model for model, due in self._due.items() if due <= self._monotonic()]:
            receipts = await self._announce(model)
            if model in self._due:
                self._due[model] = self._monotonic() + (AGAIN if receipts else RETRY)
            await asyncio.sleep(PAUSE)

    async def _announce(self, model: ModelId) -> int:
        try:
            async with asyncio.timeout(DEADLINE):
                return await self._door.announce(model_key(model))
        except (MfError, TimeoutError) as error:
            log.debug("announcing %s: %s", model_text(model), error)
            return 0
