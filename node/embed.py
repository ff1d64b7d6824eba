"""Embeddings: name -> model -> tokens -> vectors, by the whole model on this node.

An encoder is small and has no state to lose, so it isn't cut and no peer is asked: texts never leave this node.
"""

from __future__ import annotations

import asyncio

from node.gateway import EmbeddingRequest, Embeddings
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


class Embedder:
    def __init__(self, swarm: Swarm, locator: Locator, room: StageRoom, worker: Worker) -> None:
        self._swarm = swarm
        self._locator = locator
        self._room = room
        self._worker = worker

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Vectors in the order of the inputs; errors as those of a generation, `DeadlineExceeded` after `request.timeout` seconds."""
        try:
            async with asyncio.timeout(request.timeout):
                return await self._embed(request)
        except TimeoutError:
            raise DeadlineExceeded(f"the embeddings weren't made within {request.timeout:g} s") from None

    async def _embed(self, request: EmbeddingRequest) -> Embeddings:
        located = await self._locator.locate(self._swarm.resolve(request.model))
        await self._room.text(located)
        tokens = [await self._tokens(located, given, number) for number, given in enumerate(request.inputs)]
        rows: list[bytes] = []
        async with self._room.encoder(located, "embed", PRECISION) as stage:
            for first in range(0, len(tokens), BATCH):
                rows += (await self._worker.encode(Encode(stage=stage.key, tokens=tokens[first : first + BATCH]))).rows
        return Embeddings(model_text(located.model), rows, sum(len(one) for one in tokens))

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
