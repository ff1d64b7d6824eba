"""Vectors and scores are those of transformers' own classes, for a real MiniLM and for small made-up models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from node.worker import Worker
from protocol.errors import BadInput, MfError
from protocol.layout import TEXT_FILE
from runtime import interface as api
from runtime.encoder import Encoder, build_encoder
from runtime.weights import build_tensors, map_groups
from tests.runtime.support import config_bytes, lay_out, load_message, model_files, read_tensors, stored_tensors, tiny_config
from tests.support.mini_lm import mini_lm

TEXTS = ("A cat sits on the mat.", "Ein Kätzchen schläft auf dem Sofa.", "Interest rates rose again in the third quarter, analysts said.")
BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 24,
    "id2label": {"0": "calm", "1": "cross", "2": "glad"},
}


def reference(folder: Path, texts: tuple[str, ...]) -> list[torch.Tensor]:
    """Mean pooling and length 1 by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**given).last_hidden_state[0]
        out.append(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0))
    return out


async def test_mini_lm_through_a_worker_is_exact(tmp_path: Path) -> None:
    folder = mini_lm()
    wanted = reference(folder, TEXTS)
    worker = Worker(tmp_path, threads=torch.get_num_threads(), memory=500_000_000)
    try:
        files = {name: data for name, data in model_files(folder).items() if TEXT_FILE.fullmatch(name)}
        await worker.load_text(api.LoadText(model="m", files=files))
        fd, places, length = lay_out(read_tensors(folder / "model.safetensors"))
        load = load_message(places, length, 0, 6, 6, "fp32")
        load.task = "embed"
        await worker.load_stage(load, [fd])
        os.close(fd)
        tokens = [await worker.encode_text("m", text) for text in TEXTS]
        made = await worker.encode(api.Encode(stage=load.stage, tokens=tokens))
    finally:
        await worker.stop()
    assert made.rows == [row.numpy().tobytes() for row in wanted]
    assert made.labels == []
    alike, unlike = float(wanted[0] @ wanted[1]), float(wanted[0] @ wanted[2])
    assert alike > unlike


def tiny_bert(head: str, **changes: Any) -> tuple[dict[str, Any], Any]:
    import transformers

    config = BERT | {"architectures": [head]} | changes
    torch.manual_seed(3)
    kind = getattr(transformers, head)
    made = transformers.AutoConfig.for_model(config["model_type"], **{key: value for key, value in config.items() if key != "model_type"})
    return config, kind(made).eval()


def build(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], task: str, layers: int = 3) -> Encoder:
    (folder / "config.json").write_bytes(config_bytes(config))
    fd, places, length = lay_out(tensors)
    try:
        mapped = build_tensors(map_groups([fd], [length]), places)
    finally:
        os.close(fd)
    return build_encoder(folder, mapped, layers, "fp32", task)


def tiny_llama(**changes: Any) -> tuple[dict[str, Any], Any]:
    """A decoder with a head of labels: the last token's row is scored."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = tiny_config(num_hidden_layers=3, architectures=["LlamaForSequenceClassification"], id2label=BERT["id2label"]) | changes
    torch.manual_seed(3)
    made = AutoConfig.for_model("llama", **{key: value for key, value in config.items() if key != "model_type"})
    return config, AutoModelForSequenceClassification.from_config(made, dtype=torch.float32).eval()


def own_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long)).logits[0]


@pytest.mark.parametrize(
    ("problem", "apply"),
    [
        (None, lambda row: row.softmax(0)),
        ("single_label_classification", lambda row: row.softmax(0)),
        ("multi_label_classification", torch.sigmoid),
        ("regression", lambda row: row),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_scores_are_the_classifiers_own(kind: str, problem: str | None, apply: Any, tmp_path: Path) -> None:
    changes = {} if problem is None else {"problem_type": problem}
    config, model = tiny_bert("BertForSequenceClassification", **changes) if kind == "bert" else tiny_llama(**changes)
    encoder = build(tmp_path, config, stored_tensors(model), "classify")
    tokens = [1, 5, 9, 33]
    assert torch.equal(encoder.scores(tokens), apply(own_logits(model, tokens)))
    assert encoder.labels == ["calm", "cross", "glad"]


def test_a_single_label_is_told_by_itself(tmp_path: Path) -> None:
    config, model = tiny_bert("BertForSequenceClassification", id2label={"0": "spam"})
    encoder = build(tmp_path, config, stored_tensors(model), "classify")
    assert torch.equal(encoder.scores([1, 5]), own_logits(model, [1, 5]).sigmoid())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id2label": {"0": "a", "1": "b\x1b[2J", "2": "c"}}, r"config\.json: label 1 .* control characters"),
        ({"id2label": {"0": "a", "1": "b", "2": "\u202egnp"}}, r"config\.json: label 2 .* control characters"),
        ({"id2label": {"0": "a", "1": "", "2": "c"}}, r"config\.json: label 1 has 0 characters, 1 to 128"),
        ({"id2label": {"0": "a", "1": "b", "2": "c" * 129}}, r"config\.json: label 2 has 129 characters, 1 to 128"),
        ({"id2label": {"0": "a", "1": ["b"], "2": "c"}}, r"config\.json: label 1 isn't a text"),
        ({"id2label": {str(number): "x" for number in range(4097)}}, r"config\.json: 4097 labels, at most 4096"),
        ({"id2label": None, "num_labels": 2_000_000_000}, r"config\.json: 2000000000 labels, at most 4096"),
        ({"id2label": {}}, r"config\.json: 0 labels, 1 to 4096"),
        ({"id2label": None, "num_labels": "3"}, r"config\.json can't be used"),
        ({"id2label": ["a", "b", "c"]}, r"config\.json can't be used"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "guess"}, r"config\.json: problem_type 'guess' isn't known"),
    ],
)
def test_hostile_labels_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    config, model = tiny_bert("BertForSequenceClassification")
    with pytest.raises(BadInput, match=said):
        build(tmp_path, config | changes, stored_tensors(model), "classify")


def test_a_decoder_embeds_too(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    config = tiny_config(num_hidden_layers=3, architectures=["LlamaModel"])
    torch.manual_seed(3)
    made = AutoConfig.for_model("llama", **{key: value for key, value in config.items() if key != "model_type"})
    model = AutoModel.from_config(made, dtype=torch.float32).eval()
    encoder = build(tmp_path, config, stored_tensors(model), "embed")
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([[4, 8, 15]])).last_hidden_state[0].mean(dim=0)
    assert torch.equal(encoder.vector([4, 8, 15], normalise=False), wanted)


def test_a_pooler_that_isnt_published_isnt_missed(tmp_path: Path) -> None:
    config, model = tiny_bert("BertModel")
    tensors = {name: tensor for name, tensor in stored_tensors(model).items() if not name.startswith("pooler.")}
    assert len(build(tmp_path, config, tensors, "embed").vector([1, 2], normalise=True)) == 32


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    config, model = tiny_bert("BertForSequenceClassification")
    tensors = stored_tensors(model)
    del tensors["classifier.weight"]
    with pytest.raises(BadInput, match=r"tensor 'classifier\.weight' is needed here"):
        build(tmp_path, config, tensors, "classify")


@pytest.mark.parametrize(
    ("tokens", "said"),
    [([], "at least one"), ([64], r"0\.\.63"), ([-1], r"0\.\.63"), ([1] * 25, "has 25 tokens, the model takes 24")],
)
def test_hostile_texts_are_refused(tokens: list[int], said: str, tmp_path: Path) -> None:
    config, model = tiny_bert("BertModel")
    encoder = build(tmp_path, config, stored_tensors(model), "embed")
    with pytest.raises(BadInput, match=said):
        encoder.vector(tokens, normalise=True)


@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification"])
def test_values_that_are_none_never_become_an_answer(kind: str, tmp_path: Path) -> None:
    config, model = tiny_bert(kind)
    encoder = build(tmp_path, config, stored_tensors(model), "embed" if kind == "BertModel" else "classify")
    with torch.no_grad():
        next(held for name, held in encoder.model.named_parameters() if "word_embeddings" in name)[7] = float("nan")
    answer = encoder.scores if encoder.task == "classify" else lambda tokens: encoder.vector(tokens, normalise=True)
    assert torch.isfinite(answer([5, 6])).all()
    with pytest.raises(MfError, match="aren't numbers"):
        answer([5, 7])


def test_a_config_of_other_layers_is_refused(tmp_path: Path) -> None:
    config, model = tiny_bert("BertModel")
    with pytest.raises(BadInput, match=r"4 layers were asked, config\.json says 3"):
        build(tmp_path, config, stored_tensors(model), "embed", layers=4)
