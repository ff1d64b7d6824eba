"""Embeddings through the verbs of a node and a real worker: a real MiniLM, published, found, assembled, exact."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from node.embed import Embedder
from node.encode_texts import BATCH, TextEncoder
from node.gateway import EmbeddingRequest
from node.stage_room import StageRoom
from node.worker import Worker
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, NotFound
from tests.node.verb_fakes import verb_swarm
from tests.runtime.test_encoder import TEXTS, mini_lm, reference


class Setting:
    def __init__(self, embedder: Embedder, model: str) -> None:
        self.embedder = embedder
        self.model = model

    async def rows(self, *inputs: str | list[int], timeout: float = 300.0) -> list[bytes]:
        return (await self.embedder.embed(EmbeddingRequest(self.model, list(inputs), timeout))).rows


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    worker = Worker(tmp_path, threads=torch.get_num_threads(), memory=500_000_000)
    async with verb_swarm(0, tmp_path) as swarm:
        node = await swarm.add(tmp_path, quota=200 * limits.MIB)
        done = await node.publish(mini_lm())
        await swarm.tell()
        room = StageRoom(worker, node.assembler, 500_000_000)
        try:
            yield Setting(Embedder(TextEncoder(node.swarm, node.locator, room, worker)), done["model_id"])
        finally:
            await worker.stop()


async def test_a_published_mini_lm_embeds_exactly(setting: Setting) -> None:
    wanted = [row.numpy().tobytes() for row in reference(mini_lm(), TEXTS)]
    assert await setting.rows(*TEXTS) == wanted
    # tokens instead of a text ([CLS] a cat [SEP]), and more inputs than one call takes
    [by_text] = await setting.rows("a cat")
    assert await setting.rows(*[[101, 1037, 4937, 102]] * (BATCH + 1)) == [by_text] * (BATCH + 1)
    for bad, said in (([7] * 513, "input 1 has 513 tokens, the model takes 512"), ([], "input 1 is empty"), ([99_999], r"0\.\.30521")):
        with pytest.raises(BadInput, match=said):
            await setting.rows("fine", bad)
    with pytest.raises(DeadlineExceeded, match="didn't embed within"):
        await setting.rows("fine", timeout=0.001)
    setting.model = "nobody/nothing"
    with pytest.raises(NotFound):
        await setting.rows("fine")
