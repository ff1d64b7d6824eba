"""What the lean step is compared with at load: right ones pass at every cut and precision, each wrong part is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bootstrap.demo_model import demo_model
from runtime import lean_check
from runtime.lean import LeanRunner
from runtime.lean_shape import Decoder, Unlike, decoder_of
from runtime.linear import make_linear
from runtime.quantised import quantise
from runtime.runners import lean_runner
from runtime.self_test import self_test
from runtime.sliced import whole
from runtime.stage import Stage, build_stage
from tests.runtime.support import for_stage, read_tensors, stored_tensors, tiny_config, tiny_model
from tests.runtime.test_stage import build

PRECISIONS = ["fp32", "bf16", "int8", "int4"]
SPANS = [(0, 6), pytest.param((0, 2), marks=pytest.mark.nightly), (2, 4), pytest.param((4, 6), marks=pytest.mark.nightly)]
LAYERS = 30


def made(folder: Path, span: tuple[int, int], precision: str, count: int = 1) -> tuple[Stage, list[Decoder]]:
    """A stage all of whose parts have a say, as a trained one's have: at random most layers add next to nothing. And `count` times its
    parts, to be spoilt."""
    config = tiny_config(attention_bias=True)
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for name, one in stored_tensors(tiny_model(config)).items():
        stronger = 9.0 if "q_proj" in name or "k_proj" in name else 1.0 if one.dim() < 2 else 6.0
        tensors[name] = torch.randn(one.shape, generator=random).to(one.dtype) if name.endswith("bias") else one * stronger
    held = for_stage(tensors, "model.layers.", *span, 6)
    stage = build(folder, config, held, *span, "fp32" if precision == "fp32" else "bf16")
    self_test(stage)
    decoders = [decoder_of(stage) for _ in range(count)]
    if precision in ("int8", "int4"):
        quantise(stage, precision)
    return stage, decoders


def wrong_scale(decoder: Decoder) -> None:
    decoder.scale *= 3


def wrong_eps(decoder: Decoder) -> None:
    decoder.eps *= 2e5


def wrong_act(decoder: Decoder) -> None:
    decoder.act = nn.functional.relu


def wrong_rotary(decoder: Decoder) -> None:
    right = decoder.rotary

    def turned_back(*args: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = right(*args, **named)
        return cos, -sin

    decoder.rotary = turned_back


def wrong_norm(decoder: Decoder) -> None:
    decoder.layers[1].norms["before_mlp"] = decoder.layers[1].norms["before_mlp"] + 1.0


def wrong_window(decoder: Decoder) -> None:
    decoder.layers[1].window = 3


def replaced(decoder: Decoder, part: int, weight: Callable[[torch.Tensor], torch.Tensor], bias: bool) -> None:
    """Another matrix in the place of one of queries, keys and values of the second layer."""
    parts = decoder.layers[1].qkv.parts
    old = parts[part]
    new = nn.Linear(old.in_features, old.out_features, dtype=old.weight.dtype)
    new.weight.data, new.bias.data = weight(old.weight.data), old.bias.data if bias else torch.zeros_like(old.bias.data)
    parts[part] = new


def no_bias(decoder: Decoder) -> None:
    replaced(decoder, 2, lambda weight: weight, False)


def heads_mixed_up(decoder: Decoder) -> None:
    replaced(decoder, 2, lambda weight: weight.roll(16, 0), True)


def rows_off_by_one(decoder: Decoder) -> None:
    replaced(decoder, 2, lambda weight: weight.roll(1, 0), True)


WRONG = [wrong_scale, wrong_eps, wrong_act, wrong_rotary, wrong_norm, wrong_window, no_bias, heads_mixed_up, rows_off_by_one]


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_right_one_passes_and_each_wrong_part_is_seen(precision: str, span: tuple[int, int], tmp_path: Path) -> None:
    stage, (right, *others) = made(tmp_path, span, precision, 1 + len(WRONG))
    assert lean_check.check(stage, LeanRunner(stage, right, precision)).startswith("as transformers gives")
    for wrong, decoder in zip(WRONG, others, strict=True):
        wrong(decoder)
        with pytest.raises(Unlike, match="it gave other numbers than transformers"):
            pytest.fail(f"{wrong.__name__} isn't seen: {lean_check.check(stage, LeanRunner(stage, decoder, precision))}")


def test_the_stage_is_left_as_it_was(tmp_path: Path) -> None:
    stage, _decoders = made(tmp_path, (0, 2), "bf16")
    given = lean_check._Given(stage)
    before = whole(given.all_by_stage(given.rows))
    most = whole(given.moved_again([0.0] * len(before), before))
    assert all(0 < much < 0.06 for much in most)
    assert all(torch.equal(one, other) for one, other in zip(before, whole(given.all_by_stage(given.rows)), strict=True))


def test_numbers_that_are_none_are_seen(tmp_path: Path) -> None:
    stage, (decoder,) = made(tmp_path, (0, 2), "bf16")
    runner = LeanRunner(stage, decoder, "bf16")
    runner._steps[0]._down = lambda x: x.new_full((len(x), 64), float("nan"))  # type: ignore[assignment]
    with pytest.raises(Unlike, match="nan apart"):
        lean_check.check(stage, runner)


def demo_stage(first: int, end: int) -> Stage:
    folder = demo_model()
    held = for_stage(read_tensors(folder / "model.safetensors"), "model.layers.", first, end, LAYERS)
    stage = build_stage(folder, held, first, end, LAYERS, "bf16")
    self_test(stage)
    return stage


@pytest.mark.parametrize(("first", "end"), [(0, 10), (10, 20), (20, 30)])
def test_a_cut_through_layers_that_tear_rows_apart_runs_lean(first: int, end: int) -> None:
    """A trained model, whose first position is about to become the one that all others look at."""
    runner, said = lean_runner(demo_stage(first, end), "int4")
    assert runner is not None, said


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_every_stage_of_a_trained_model_runs_lean(precision: str, stages: int) -> None:
    for number in range(stages):
        runner, said = lean_runner(demo_stage(LAYERS * number // stages, LAYERS * (number + 1) // stages), precision)
        assert runner is not None, said


@pytest.mark.parametrize(("precision", "span"), [("int4", (0, 10)), ("int4", (10, 20)), ("bf16", (20, 30))])
def test_a_wrong_part_is_seen_where_rows_are_torn_apart(precision: str, span: tuple[int, int]) -> None:
    """One matrix of a layer in the middle with its heads in another order, or a softmax that is too sharp."""
    stage = demo_stage(*span)
    decoder = decoder_of(stage)
    weights = decoder.layers[4].out.joined()
    if precision != "bf16":
        quantise(stage, precision)
    runner = LeanRunner(stage, decoder, precision)
    lean_check.check(stage, runner)
    right, runner._steps[4]._out = runner._steps[4]._out, make_linear(weights[0].roll(64, 1), None, precision)
    with pytest.raises(Unlike):
        lean_check.check(stage, runner)
    runner._steps[4]._out = right
    decoder.scale *= 2
    with pytest.raises(Unlike):
        lean_check.check(stage, LeanRunner(stage, decoder, precision))
