"""Labels through the verbs of a node and a real worker: classifiers made up here, published, found, assembled, exact."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from node.classify import Classifier
from node.encode_texts import TextEncoder
from node.gateway import ClassificationRequest, Classifications
from node.generate import Generator
from node.stage_room import StageRoom
from node.worker import Worker
from protocol import limits
from protocol.errors import BadInput, MfError
from runtime.interface import Encoded
from tests.node.test_generate import ask
from tests.node.verb_fakes import VerbNode, VerbSwarm, verb_swarm
from tests.runtime.test_encoder import own_logits, tiny_bert, tiny_llama
from tests.support.synthetic import write_tokenizer

TEXTS = ["What a lovely day.", "No.", "Nobody has seen it."]
SIZES = {"vocab_size": 512, "max_position_embeddings": 64}


@dataclass
class Setting:
    swarm: VerbSwarm
    node: VerbNode
    worker: Worker
    classifier: Classifier

    async def publish(self, path: Path) -> str:
        done = await self.node.publish(path)
        await self.swarm.tell()
        return str(done["model_id"])

    async def classify(self, model: str) -> Classifications:
        return await self.classifier.classify(ClassificationRequest(model, TEXTS, 300.0))


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    worker = Worker(tmp_path, threads=torch.get_num_threads(), memory=500_000_000)
    async with verb_swarm(0, tmp_path) as swarm:
        node = await swarm.add(tmp_path, quota=200 * limits.MIB)
        room = StageRoom(worker, node.assembler, 500_000_000)
        try:
            yield Setting(swarm, node, worker, Classifier("12D3KooWMe", TextEncoder(node.swarm, node.locator, room, worker)))
        finally:
            await worker.stop()


def saved(path: Path, model: Any) -> Path:
    model.save_pretrained(path)
    write_tokenizer(path)
    return path


@pytest.mark.parametrize(
    ("make", "problem", "apply"),
    [
        (lambda **more: tiny_bert("BertForSequenceClassification", **more), "single_label_classification", lambda row: row.softmax(0)),
        (lambda **more: tiny_bert("BertForSequenceClassification", **more), "multi_label_classification", torch.sigmoid),
        (tiny_llama, "single_label_classification", lambda row: row.softmax(0)),
    ],
)
async def test_a_published_classifier_is_exact(
    setting: Setting, tmp_path: Path, make: Callable[..., Any], problem: str, apply: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    _config, model = make(problem_type=problem, **SIZES)
    model_id = await setting.publish(saved(tmp_path / "model", model))
    made = await setting.classify(model_id)
    tokens = [await setting.worker.encode_text(model_id, text) for text in TEXTS]
    assert made.scores == [apply(own_logits(model, one)).tolist() for one in tokens]
    assert made.labels == ["calm", "cross", "glad"]
    assert (made.model_id, made.tokens) == (model_id, sum(map(len, tokens)))
    assert made.route == [{"peer": "12D3KooWMe", "first": 0, "end": 3, "here": True}]
    assert {"plan", "assemble", "load", "total"} <= made.timings.keys()


async def test_a_wrong_kind_of_model_is_named_both_ways(setting: Setting, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    _config, classifier = tiny_llama(**SIZES)
    labels = await setting.publish(saved(tmp_path / "labels", classifier))
    writer = LlamaForCausalLM(classifier.config)
    writes = await setting.publish(saved(tmp_path / "writes", writer))
    with pytest.raises(BadInput, match=r"\(LlamaForCausalLM\) is no text-classification model: it has no labels"):
        await setting.classify(writes)
    nothing: Any = SimpleNamespace(peer_id="12D3KooWMe")
    generator = Generator(nothing, setting.node.swarm, setting.node.locator, *[nothing] * 5)
    with pytest.raises(BadInput, match=r"\(LlamaForSequenceClassification\) is a text-classification model: it gives labels"):
        await anext(generator.generate(ask(model=labels)))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Encoded([b""], []), "the worker named 0 labels"),
        (Encoded([b""], ["x"] * 4097), "the worker named 4097 labels"),
        (Encoded([struct.pack("<1f", 1)], ["a", "b"]), "gave 4 bytes as the scores of 2 labels"),
        (Encoded([struct.pack("<2f", 1, float("nan"))], ["a", "b"]), "aren't numbers"),
        (Encoded([struct.pack("<2f", 1, 0)], ["a", "b\x07"]), "control characters"),
    ],
)
async def test_what_the_worker_says_is_looked_at_again(made: Encoded, said: str) -> None:
    class Lying:
        async def encode(self, *_asked: Any) -> Any:
            return SimpleNamespace(located=None, rows=made.rows, labels=made.labels, tokens=1, timings={})

    with pytest.raises(MfError, match=said):
        await Classifier("12D3KooWMe", Lying()).classify(ClassificationRequest("m", ["x"]))  # type: ignore[arg-type]
