"""A worker process with the whole demonstration model in it, as a node has one: the engine with its scheduler, sampler and channel."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

from bootstrap.demo_model import demo_model
from node.worker import Worker
from protocol.messages import Sampling
from runtime import interface as api
from tests.runtime.support import lay_out, load_message, model_files, read_tensors

LAYERS = 30
MEMORY = 4_000_000_000


class WholeWorker:
    """`async with WholeWorker(scratch, "bf16") as worker: await worker.reply(tokens, 48)`."""

    def __init__(self, scratch: Path, precision: str, *, threads: int = 2, engine: str = "torch") -> None:
        self._worker = Worker(scratch, threads=threads, memory=MEMORY, reuse=False)
        self._precision, self._engine = precision, engine
        self._stage, self._asked = "", 0

    async def __aenter__(self) -> WholeWorker:
        try:
            await self._load()
        except BaseException:
            await self._worker.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._worker.stop()

    async def _load(self) -> None:
        await self._worker.load_text(api.LoadText(model="m", files=model_files(demo_model())))
        fd, places, length = lay_out(read_tensors(demo_model() / "model.safetensors"))
        message = load_message(places, length, 0, LAYERS, LAYERS, self._precision)
        message.engine = self._engine
        try:
            told = await self._worker.load_stage(message, [fd])
        finally:
            os.close(fd)
        if told.engine != self._engine:
            raise RuntimeError(told.why)
        self._stage = message.stage
        await self.reply([1, 2, 3], 4)

    async def reply(self, tokens: Sequence[int], new: int) -> list[float]:
        """When each of `new` tokens came, greedy and without guesses ahead, whatever they are; the text is made too."""
        self._asked += 1
        asked = api.Generate(
            stage=self._stage, session=str(self._asked), tokens=list(tokens), tokens_max=len(tokens) + new, new_max=new, stop_tokens=[],
            sampling=Sampling(temperature=0.0), text=True, drafts=False,
        )  # fmt: skip
        at = list[float]()
        async for note in self._worker.generate(asked):
            at += [time.monotonic()] * (len(note.tokens) if isinstance(note, api.Made) else 0)
        return at

    async def usage(self) -> api.Usage:
        """What it holds now."""
        return await self._worker.usage()

    async def replies(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[float]]:
        """All at once."""
        return list(await asyncio.gather(*(self.reply(tokens, new) for tokens in prompts)))
