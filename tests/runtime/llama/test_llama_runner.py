"""llama.cpp's stages against torch's: whole and cut, alone and beside others, growing, going back, refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import BadInput, Conflict, MfError, Unavailable
from runtime.llama import library as binding
from runtime.llama.engine import ALLOWED, build_llama
from runtime.llama.runner import LlamaRunner
from runtime.llama.stage_file import Shape
from runtime.model_runner import Row
from runtime.stage import Stage, build_stage
from tests.runtime.support import for_stage, stored_tensors, tiny_config, tiny_model

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama 3's rotary": {"rope_parameters": LLAMA3},
    "linear rotary": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}
CUTS = ([0, 6], [0, 3, 6], [0, 2, 3, 6])


class Made:
    """Runners of one model over its cuts, and torch's stages beside them."""

    def __init__(self, folder: Path, changes: dict[str, Any], cuts: list[int], precision: str = "bf16", attention: float = 3.0) -> None:
        config = tiny_config(max_position_embeddings=1024) | changes
        scale = {True: attention, False: 3.0}
        stored = stored_tensors(tiny_model(config))
        tensors = {name: one * scale["q_proj" in name or "k_proj" in name] if one.ndim > 1 else one for name, one in stored.items()}
        (folder / "config.json").write_text(json.dumps(config))
        self.stages: list[Stage] = []
        self.runners: list[LlamaRunner] = []
        self.said: list[str] = []
        for first, end in pairwise(cuts):
            held = for_stage(tensors, "model.layers.", first, end, 6)
            self.stages.append(build_stage(folder, dict(held), first, end, 6, "bf16"))
            runner, said = build_llama(self.stages[-1], held, precision, folder, 2)
            self.runners.append(runner)
            self.said.append(said)

    def run(self, rows: list[Row]) -> torch.Tensor:
        hidden: torch.Tensor | None = None
        for runner in self.runners:
            given = rows if runner.first == 0 else [Row(row.slot, row.position, row.count, None, row.logits) for row in rows]
            hidden = runner.run(given, hidden)
        assert hidden is not None
        return hidden

    def close(self) -> None:
        for runner in self.runners:
            runner.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    one = Made(tmp_path, {}, [0, 6])
    yield one
    one.close()


def near(left: torch.Tensor, right: torch.Tensor, allowed: float = 0.05) -> bool:
    return bool((left.float() - right.float()).square().mean().sqrt() < allowed * right.float().std())


@pytest.mark.parametrize("cuts", CUTS, ids=["whole", "two", "three"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_torchs_own_at_every_cut(kind: str, cuts: list[int], tmp_path: Path) -> None:
    """The self-test at load compares each stage with torch; here the chain of them, over a prompt and steps."""
    made = Made(tmp_path, KINDS[kind], cuts)
    tokens = [5, 9, 77, 30, 2, 64, 3, 8, 120, 11, 45]
    caches = [stage.new_cache() for stage in made.stages]
    for first, end in [(0, 8), (8, 9), (9, 10), (10, 11)]:
        wanted: torch.Tensor | None = None
        for stage, cache in zip(made.stages, caches, strict=True):
            stage.tell_position(cache, first)
            wanted = stage.forward(cache, torch.tensor(tokens[first:end]) if stage.first == 0 else None, wanted)
        got = made.run([Row(0, first, end - first, tokens[first:end], 1)])
        assert wanted is not None
        assert got.shape == (1, 128)
        assert near(got[0], wanted, 0.1)
    assert all(said.startswith("llama.cpp") for said in made.said)
    made.close()


@pytest.mark.parametrize("precision", ["q8_0", "q4_1"])
def test_fewer_bits_are_near_and_cuts_change_nothing(precision: str, tmp_path: Path) -> None:
    outs = []
    for number, cuts in enumerate(CUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = Made(folder, {}, cuts, precision)
        outs.append(made.run([Row(0, 0, 6, [5, 9, 77, 30, 2, 64], 1)]))
        assert sum(runner.weight_bytes for runner in made.runners) < 0.8 * 2 * 6 * 64 * (64 * 3 + 96 * 3 + 128)
        made.close()
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_sequences_side_by_side_are_what_they_are_alone(made: Made) -> None:
    """Places that aren't neighbours, prompts beside steps, and rows given in any order."""
    prompts = {7: [5, 9, 77], 2: [30, 2, 64, 3, 8], 40: [1], 3: [99, 98]}
    alone = {}
    for slot, prompt in prompts.items():
        made.run([Row(slot, 0, len(prompt), prompt, 1)])
        alone[slot] = made.run([Row(slot, len(prompt), 1, [17], 1)])[0]
        made.runners[0].release(slot)
    made.run([Row(slot, 0, len(prompt), prompt, 0) for slot, prompt in prompts.items()])
    made.runners[0].release(40)
    made.run([Row(40, 0, 1, [1], 0)])
    rows = [Row(slot, len(prompt), 1, [17], 1) for slot, prompt in reversed(prompts.items())]
    together = made.run([*rows, Row(8, 0, 3, [1, 2, 3], 2)])
    assert together.shape == (6, 128)
    for row, got in zip(rows, together, strict=False):
        assert near(got, alone[row.slot])


def test_a_sequence_grows_out_of_its_bucket_and_loses_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path, {}, [0, 3, 6])
    tokens = [(7 * at) % 120 for at in range(700)]
    whole = made.run([Row(1, 0, 700, tokens, 1)])
    made.run([Row(0, 0, 200, tokens[:200], 0)])
    for at in range(200, 700, 100):
        grown = made.run([Row(0, at, 100, tokens[at : at + 100], 1)])
    assert near(grown[0], whole[0], 0.1)
    assert {positions for positions, bucket in made.runners[0]._buckets.items() if bucket.slots} == {1024}
    assert made.runners[0].reserved_bytes >= 1024 * made.runners[0].token_bytes
    made.close()


@pytest.mark.parametrize("cuts", [[0, 6], [0, 2, 6]], ids=["whole", "two"])
def test_what_is_charged_is_what_contexts_report(cuts: list[int], tmp_path: Path) -> None:
    made = Made(tmp_path, {}, cuts)
    for runner in made.runners:
        runner.give_back()
        assert (runner.reserved_bytes, runner.scratch) == (0, [])
        slot = 0
        for positions, count in ((40, 1), (256, 4), (257, 2), (900, 1), (100, 5)):
            for _ in range(count):
                before, told = runner.reserved_bytes, runner.bytes_to_seat(positions)
                runner.seat(slot, positions)
                slot += 1
                contexts = [bucket.context for bucket in runner._buckets.values()]
                # It tells hundredths of a MiB.
                assert abs(runner.reserved_bytes - sum(context.kv_bytes for context in contexts)) <= len(contexts) * 2**20 / 190
                assert 0 < min(runner.scratch) <= max(runner.scratch) <= runner.scratch_each
                assert told == 0 or told >= runner.place_bytes(positions)
                assert runner.reserved_bytes - before <= told
        assert {positions: len(bucket.slots) for positions, bucket in runner._buckets.items()} == {256: 10, 512: 2, 1024: 1}
        for one in range(slot):
            runner.release(one)
        runner.give_back()
        assert runner.reserved_bytes == 0
    made.close()


def test_a_seated_sequence_stays_where_it_is(made: Made) -> None:
    (runner,) = made.runners
    tokens = [(7 * at) % 120 for at in range(700)]
    wanted = made.run([Row(1, 0, 700, tokens, 1)])
    runner.seat(0, 700)
    taken = runner.reserved_bytes
    made.run([Row(0, 0, 200, tokens[:200], 0)])
    got = made.run([Row(0, 200, 500, tokens[200:], 1)])
    assert runner.reserved_bytes == taken
    assert near(got[0], wanted[0], 0.1)


def test_going_back_and_on_again(made: Made) -> None:
    first = made.run([Row(0, 0, 5, [5, 9, 77, 30, 2], 1)])
    made.run([Row(0, 5, 2, [1, 1], 1)])
    made.runners[0].crop(0, 4)
    assert near(made.run([Row(0, 4, 1, [2], 1)])[0], first[0])


def test_a_row_that_begins_earlier_drops_what_lay_there_and_a_gap_is_refused(made: Made) -> None:
    first = made.run([Row(0, 0, 5, [5, 9, 77, 30, 2], 1)])
    made.run([Row(0, 5, 3, [1, 2, 3], 1)])
    assert near(made.run([Row(0, 4, 1, [2], 1)])[0], first[0])
    for wrong in (lambda: made.run([Row(0, 9, 1, [2], 1)]), lambda: made.runners[0].crop(0, 6)):
        with pytest.raises(Conflict, match="holds 5 positions"):
            wrong()


def test_more_logits_than_fit_in_one_pass(made: Made) -> None:
    tokens = [(7 * at) % 120 for at in range(600)]
    every = made.run([Row(0, 0, 600, tokens, 90)])
    assert every.shape == (90, 128)
    assert near(every[-1], made.run([Row(1, 0, 600, tokens, 1)])[0])
    assert near(every[0], made.run([Row(2, 0, 511, tokens[:511], 1)])[0])
    many = made.run([Row(slot, 0, 1, [5], 1) for slot in range(3, 80)])
    assert many.shape == (77, 128)
    assert all(near(row, many[0]) for row in many)


def test_a_graph_that_is_laid_out_otherwise_is_run_again(tmp_path: Path) -> None:
    """Where the last layer's result is looked for too late it is missed; the pass is done again and nothing is lost."""
    made = Made(tmp_path, {}, [0, 3, 6])
    made.run([Row(0, 0, 3, [5, 9, 77], 0)])
    wanted = made.run([Row(0, 3, 1, [6], 1)])
    (bucket,) = made.runners[0]._buckets.values()
    bucket.context._nodes[1, 1] = 10_000
    assert torch.equal(made.run([Row(0, 3, 1, [6], 1)]), wanted)
    assert 0 < bucket.context._nodes[1, 1] < 10_000
    made.close()


def test_several_logits_of_one_row(made: Made) -> None:
    each = made.run([Row(0, 0, 4, [5, 9, 77, 30], 4)])
    for at in range(4):
        assert near(each[at], made.run([Row(1 + at, 0, at + 1, [5, 9, 77, 30][: at + 1], 1)])[0])


def test_a_prompt_longer_than_a_batch(made: Made) -> None:
    tokens = [(11 * at) % 120 for at in range(900)]
    long = made.run([Row(0, 0, 900, tokens, 1)])
    for at in range(0, 900, 300):
        cut = made.run([Row(1, at, 300, tokens[at : at + 300], 1)])
    assert near(long[0], cut[0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt2", "hidden_size": 64}, "type 'gpt2'"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding windows"),
        ({"mlp_bias": True}, "biases"),
        ({"intermediate_size": 90}, "multiples of 32"),
    ],
)
def test_what_the_form_has_no_words_for_is_refused(changes: dict[str, Any], reason: str) -> None:
    from transformers import AutoConfig

    given = tiny_config() | changes
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    with pytest.raises(BadInput, match=reason):
        Shape.of(config)


def test_wrong_weights_dont_pass_the_self_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads left unturned are what a mistake in the file would look like."""
    monkeypatch.setattr("runtime.llama.stage_file._turned", lambda _shape, _part, tensor: tensor)
    with pytest.raises(Unavailable, match="spreads off"):
        Made(tmp_path, {}, [0, 6], attention=40.0)
    assert not list(tmp_path.glob("*.gguf"))
    assert set(ALLOWED) == {"bf16", "q8_0", "q4_1"}


def test_another_layout_of_parameters_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    path = binding._path()
    assert path is not None
    monkeypatch.setitem(binding._CONTEXT_DEFAULTS, "n_ubatch", 77)
    with pytest.raises(Unavailable, match="n_ubatch"):
        binding.Library(path)


def test_another_wheel_or_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "VERSION", "1.0")
    assert "is installed" in (binding.missing() or "")
    monkeypatch.setattr(binding, "WHEEL", "no-such-wheel")
    assert "isn't installed" in (binding.missing() or "")


def test_an_unknown_precision_names_those_there_are(made: Made, tmp_path: Path) -> None:
    with pytest.raises(MfError, match="bf16, q8_0, q4_1"):
        build_llama(made.stages[0], {}, "int3", tmp_path, 1)
