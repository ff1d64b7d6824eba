"""The lean step against transformers: every kind it knows, cut or whole, sequences alone and together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protocol.errors import BadInput, Conflict
from runtime import quantised
from runtime.lean_shape import Unlike, decoder_of
from runtime.linear_plain import Plain
from runtime.model_runner import Row
from runtime.runners import lean_runner
from runtime.self_test import self_test
from tests.runtime.lean_kinds import KINDS, lean_of, reference, stages_of, through, wanted, words
from tests.runtime.support import stored_tensors, tiny_config, tiny_model
from tests.runtime.test_stage import build

CLOSE = {"rtol": 0, "atol": 3e-5}


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_a_prefill_and_steps_give_what_transformers_gives(name: str, stages: int, tmp_path: Path) -> None:
    config, model = reference(name)
    runners = lean_of(tmp_path, config, model, stages)
    tokens = words(1, 24)
    right = wanted(model, tokens)
    got = [through(runners, [Row(0, 0, 9, tokens[:9], 9)]), through(runners, [Row(0, 9, 6, tokens[9:15], 6)])]
    got += [through(runners, [Row(0, at, 1, [tokens[at]], 1)]) for at in range(15, 24)]
    assert right.std() > 0.01, "a model whose logits are all alike tests nothing"
    torch.testing.assert_close(torch.cat(got).float(), right, **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_sequences_of_many_lengths_in_one_pass(name: str, tmp_path: Path) -> None:
    """Some decode together in a slab, one is in its prefill, one drafts; who leaves makes a hole, who comes fills it."""
    config, model = reference(name)
    runners = lean_of(tmp_path, config, model, 2)
    lengths = {slot: 5 + 11 * slot for slot in range(7)}
    texts = {slot: words(slot, 100) for slot in range(9)}
    right = {slot: wanted(model, text) for slot, text in texts.items()}
    for slot, length in lengths.items():
        through(runners, [Row(slot, 0, length, texts[slot][:length], 0)])
    for step in range(3):
        rows = [Row(slot, length, 1, [texts[slot][length]], 1) for slot, length in reversed(lengths.items())]
        rows.insert(2, Row(7, 10 * step, 10, texts[7][10 * step : 10 * step + 10], 2))
        got = through(runners, rows).float()
        expected = [right[row.slot][row.position + row.count - row.logits : row.position + row.count] for row in rows]
        torch.testing.assert_close(got, torch.cat(expected), **CLOSE)
        lengths = {slot: length + 1 for slot, length in lengths.items()}
        if step == 1:
            for runner in runners:
                runner.release(1)
            del lengths[1]
    through(runners, [Row(8, 0, 4, texts[8][:4], 0)])
    rows = [Row(slot, length, 1, [texts[slot][length]], 1) for slot, length in [*lengths.items(), (8, 4)]]
    torch.testing.assert_close(through(runners, rows).float(), torch.stack([right[row.slot][row.position] for row in rows]), **CLOSE)


def test_going_back_and_on_again(tmp_path: Path) -> None:
    config, model = reference("gemma2")
    (runner,) = lean_of(tmp_path, config, model)
    tokens, other = words(1, 70), words(2, 20)
    runner.run([Row(0, 0, 60, tokens[:60], 0)], None)
    runner.crop(0, 50)
    mixed = tokens[:50] + other
    torch.testing.assert_close(runner.run([Row(0, 50, 20, other, 20)], None), wanted(model, mixed)[50:], **CLOSE)
    with pytest.raises(Conflict, match="slot 0 holds 70 positions"):
        runner.crop(0, 71)
    with pytest.raises(Conflict, match="can't take 1 positions from 72 on"):
        runner.run([Row(0, 72, 1, [3], 1)], None)
    runner.release(0)
    with pytest.raises(Conflict):
        runner.run([Row(0, 1, 1, [3], 1)], None)


def test_a_pass_says_what_it_was_not_given(tmp_path: Path) -> None:
    config, model = reference("llama")
    first, last = lean_of(tmp_path, config, model, 2)
    with pytest.raises(BadInput, match="tokens go to the first stage"):
        first.run([Row(0, 0, 2, [1], 0)], None)
    with pytest.raises(BadInput, match="hidden states go to a later stage"):
        last.run([Row(0, 0, 2, None, 1)], torch.zeros(1, 64))


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.02), ("int8", 0.04), ("int4", 0.35)])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3, rotary in part"])
def test_fewer_bits_stay_close(name: str, precision: str, most: float, tmp_path: Path) -> None:
    config, model = reference(name)
    runners = []
    for stage in stages_of(tmp_path, config, model, 2, precision):
        runner, said = lean_runner(stage, precision)
        assert runner is not None, said
        assert said.startswith("run lean, as transformers gives at 40 positions")
        runners.append(runner)
    tokens = words(5, 40)
    right = wanted(model, tokens)
    got = through(runners, [Row(0, 0, 40, tokens, 40)]).float()
    assert float((got - right).norm() / right.norm()) < most
    assert [runner.precision for runner in runners] == [precision] * 2


def test_no_matrix_of_a_layer_keeps_the_group_that_it_came_in(tmp_path: Path) -> None:
    """But for what others are made of it stays where it is: the embedding."""
    config, model = reference("llama")
    (stage,) = stages_of(tmp_path, config, model, 1, "bf16")
    came = {part.untyped_storage().data_ptr() for part in stage.model.parameters()}
    runner, said = lean_runner(stage, "bf16")
    assert runner is not None, said
    kept = [one._weight for step in runner.steps for one in step.matrices() if isinstance(one, Plain)]
    assert all(weight.untyped_storage().data_ptr() not in came for weight in kept)
    assert {part.untyped_storage().data_ptr() for part in runner.kept.parameters()} <= came


def test_stored_weights_shrink_with_the_precision(tmp_path: Path) -> None:
    config, model = reference("llama")
    sizes = [lean_of(tmp_path, config, model, 1, precision)[0].weight_bytes for precision in ("bf16", "int8", "int4")]
    embedding = 128 * 64 * 2
    assert sizes[0] > 1.7 * (sizes[1] - embedding) > 2 * (sizes[2] - embedding)


def test_the_reference_precision_runs_by_transformers(tmp_path: Path) -> None:
    config, model = reference("llama")
    assert lean_runner(stages_of(tmp_path, config, model, 1)[0], "fp32") == (None, "run by transformers, the reference")


OTHERS = [
    ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, "models of type 'gpt_neox' aren't known to it"),
    (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        "its rotary tables change with the length ('dynamic')",
    ),
    ({"hidden_act": "relu"}, "its activation function isn't known"),
]


@pytest.mark.parametrize(("changes", "why"), OTHERS)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_what_it_does_not_know_runs_by_transformers(changes: dict[str, object], why: str, precision: str, tmp_path: Path) -> None:
    config = tiny_config(**changes)
    model = tiny_model(config)
    stage = build(tmp_path, config, stored_tensors(model), 0, 6, precision)
    self_test(stage)
    assert lean_runner(stage, precision) == (None, f"run by transformers: {why}")
    tokens = words(3, 12)
    got = stage.forward(stage.new_cache(), torch.tensor(tokens), None).float()
    right = wanted(model.float(), tokens)[-1]
    assert float((got - right).norm() / right.norm()) < 0.06


def test_a_layer_with_more_in_it_is_refused(tmp_path: Path) -> None:
    config, model = reference("llama")
    (stage,) = stages_of(tmp_path, config, model, 1)
    stage.own_layers()[3].mlp.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(Unlike, match=r"its layers have 'mlp\.extra' too"):
        decoder_of(stage)


def test_a_class_that_cannot_be_had_in_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "_LARGE", 1000)
    config = tiny_config(model_type="gpt2", architectures=["GPT2LMHeadModel"], n_layer=6, n_embd=64, n_head=4, tie_word_embeddings=True)
    stage = build(tmp_path, config, stored_tensors(tiny_model(config)), 0, 6, "int8")
    self_test(stage)
    with pytest.raises(BadInput, match=r"can't run at int8: its layers keep 'attn\.c_attn\.weight' outside of plain matrices"):
        lean_runner(stage, "int8")
