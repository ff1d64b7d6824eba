"""Texts through a whole model on this node: name -> model -> tokens -> one row for each, of an embedding or of labels.

An encoder is small and has no state to lose, so it isn't cut and no peer is asked: texts never leave this node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.locate import Located, Locator
from node.stage_room import StageRoom
from node.swarm.interface import Swarm
from node.worker import Worker
from protocol.errors import BadInput, DeadlineExceeded
from protocol.ids import model_text
from runtime.interface import Encode

PRECISION = "fp32"
BATCH = 16
"""Texts in one call of the worker: replies of others go on between two."""


@dataclass(frozen=True)
class EncodedTexts:
    """`rows` as the worker gives them, in the order of the inputs; `timings` seconds: plan, assemble, load, total."""

    located: Located
    rows: list[bytes]
    labels: list[str]
    tokens: int
    timings: dict[str, float]


class TextEncoder:
    def __init__(self, swarm: Swarm, locator: Locator, room: StageRoom, worker: Worker) -> None:
        self._swarm = swarm
        self._locator = locator
        self._room = room
        self._worker = worker

    async def encode(
        self, model: str, inputs: Sequence[str | list[int]], task: str, timeout: float, check: Callable[[Located], None] | None = None
    ) -> EncodedTexts:
        """By `task` embed|classify, of a model that `check` lets pass; errors as those of a generation, `DeadlineExceeded` after
        `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._encode(model, inputs, task, check)
        except TimeoutError:
            raise DeadlineExceeded(f"the model didn't {task} within {timeout:g} s") from None

    async def _encode(
        self, model: str, inputs: Sequence[str | list[int]], task: str, check: Callable[[Located], None] | None
    ) -> EncodedTexts:
        started = time.monotonic()
        located = await self._locator.locate(self._swarm.resolve(model))
        if check is not None:
            check(located)
        await self._room.text(located)
        tokens = [await self._tokens(located, given, number) for number, given in enumerate(inputs)]
        timings = {"plan": time.monotonic() - started}
        rows: list[bytes] = []
        labels: list[str] = []
        async with self._room.encoder(located, task, PRECISION) as stage:
            timings |= stage.timings
            for first in range(0, len(tokens), BATCH):
                made = await self._worker.encode(Encode(stage=stage.key, tokens=tokens[first : first + BATCH]))
                rows, labels = rows + made.rows, made.labels
        timings["total"] = time.monotonic() - started
        return EncodedTexts(located, rows, labels, sum(len(one) for one in tokens), timings)

    async def _tokens(self, located: Located, given: str | list[int], number: int) -> list[int]:
        tokens = given if isinstance(given, list) else await self._worker.encode_text(model_text(located.model), given)
        context = located.manifest.summary.context
        if not tokens:
            raise BadInput(f"input {number} is empty", details={"param": "input"})
        if context is not None and len(tokens) > context:
            raise BadInput(
                f"input {number} has {len(tokens)} tokens, the model takes {context}", details={"param": "input", "context": context}
            )
        return tokens
