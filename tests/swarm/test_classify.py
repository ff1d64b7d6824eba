"""A classifier through real processes: published at one node, asked over HTTP at another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node.test_classify import SIZES, saved
from tests.runtime.test_encoder import own_logits, tiny_bert
from tests.support.processes import CommandFailed, Swarm
from tests.support.wait import wait_until
from tests.swarm.api import data

pytestmark = pytest.mark.swarm
TEXT = "What a lovely day."


def test_a_classifier_published_elsewhere_gives_its_labels(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    _config, model = tiny_bert("BertForSequenceClassification", **SIZES)
    folder = saved(tmp_path / "moods", model)
    wanted = own_logits(model, Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids).softmax(0).tolist()
    with Swarm(tmp_path, 3, "--lend", "both") as swarm:
        publisher, reader = swarm.nodes[0], swarm.nodes[2]
        publisher.cli("publish", str(folder), "--name", "moods", timeout=120.0)
        wait_until(lambda: len(reader.cli("models")["models"]) == 1, 10.0, "the model to be known")
        made = data(reader, "POST", "/api/v1/models/moods/inference", {"input": {"text": TEXT}})
        pairs = sorted(zip(["calm", "cross", "glad"], wanted, strict=True), key=lambda one: -one[1])
        assert made["result"] == {"labels": [{"label": label, "score": score} for label, score in pairs]}
        assert data(reader, "GET", "/api/v1/models/moods")["category"] == "text-classification"
        with pytest.raises(CommandFailed) as caught:
            reader.cli("chat", "moods", "hello")
        assert (caught.value.code, "it gives labels, it doesn't write" in caught.value.error["message"]) == (2, True)
