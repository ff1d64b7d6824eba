"""`python -m tests.runtime.run_elsewhere FOLDER`: stages on the stand-in device give what they give on the CPU; in a process of its own,
since torch can't forget a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from protocol.messages import Sampling
from runtime.encoder import build_encoder
from runtime.interface import Step
from runtime.lean import LeanRunner
from runtime.lean_check import check
from runtime.lean_shape import decoder_of
from runtime.linear import Int4, Int4Elsewhere, make_linear
from runtime.model_runner import Row
from runtime.runners import lean_runner
from runtime.self_test import self_test
from runtime.stage import Stage
from runtime.stage_runner import StageRunner
from tests.runtime.alone import Alone
from tests.runtime.lean_kinds import reference, stages_of, through, words
from tests.runtime.support import config_bytes, stored_tensors
from tests.runtime.test_encoder import tiny_bert
from tests.support.stand_in_device import There, stand_in

KINDS = ("llama, tied, biases", "qwen3", "phi3, rotary in part")
"""Of those without a window: transformers makes a window's mask in a way (vmap) that doesn't go through the stand-in."""


def made(folder: Path, *what: Any) -> list[Stage]:
    folder.mkdir(parents=True, exist_ok=True)
    return stages_of(folder, *what)


def moved(stages: list[Stage], device: torch.device) -> list[Stage]:
    for stage in stages:
        stage.move(device)
        held = [one for one in stage.model.parameters() if not one.is_meta]
        assert held
        assert all(isinstance(one, There) for one in held)
    return stages


def passes(runners: list[Any]) -> list[torch.Tensor]:
    """Prompts, a crowd with a hole, a draft, one alone; hidden states between the stages and logits lie on the CPU."""
    texts = {slot: words(slot, 60) for slot in range(4)}
    out = [through(runners, [Row(slot, 0, 9 + slot, texts[slot][: 9 + slot], 2)]) for slot in texts]
    for runner in runners:
        runner.release(1)
    lengths = {slot: 9 + slot for slot in texts if slot != 1}
    out.append(through(runners, [Row(slot, at, 1, texts[slot][at : at + 1], 1) for slot, at in lengths.items()]))
    out.append(through(runners, [Row(0, 10, 3, texts[0][10:13], 3), Row(2, 12, 1, texts[2][12:13], 1)]))
    out.append(through(runners, [Row(3, 13, 1, texts[3][13:14], 1)]))
    assert not any(isinstance(one, There) for one in out)
    return out


def equal(here: list[torch.Tensor], there: list[torch.Tensor]) -> None:
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.float(), one.float(), rtol=0, atol=3e-5)


def by_transformers(folder: Path, kind: str, device: torch.device) -> None:
    config, model = reference(kind)
    here = [StageRunner(stage) for stage in made(folder / "here", config, model, 2)]
    stages = moved(made(folder / "there", config, model, 2), device)
    for stage in stages:
        self_test(stage)
    equal(passes(here), passes([StageRunner(stage) for stage in stages]))


def lean(folder: Path, kind: str, device: torch.device) -> None:
    config, model = reference(kind)
    here = [LeanRunner(stage, decoder_of(stage), "fp32") for stage in made(folder / "here", config, model, 2)]
    there = []
    for stage in moved(made(folder / "there", config, model, 2), device):
        there.append(LeanRunner(stage, decoder_of(stage), "fp32"))
        check(stage, there[-1])
        there[-1].keep_tails = True
    equal(passes(here), passes(there))
    assert not any(isinstance(tail, There) for runner in there for tail in runner.tails)


def quantised(folder: Path, precision: str, device: torch.device) -> None:
    config, model = reference("llama")
    for stage in moved(made(folder / precision, config, model, 2, precision), device):
        runner, said = lean_runner(stage, precision)
        assert runner is not None, said


def int4_numbers(device: torch.device) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    here, there = make_linear(weight, None, "int4"), make_linear(weight.to(device), None, "int4")
    assert isinstance(here, Int4)
    assert isinstance(there, Int4Elsewhere)
    assert there.nbytes == here.nbytes
    torch.testing.assert_close(there(x.to(device)).cpu(), here(x), rtol=0.02, atol=0.05)


def sampled(folder: Path, device: torch.device) -> None:
    """A session's steps, from token ids to a token drawn and its logarithms."""
    config, model = reference("llama")
    sampling = Sampling(temperature=0.8, seed=7, logprobs=3, repetition_penalty=1.1)
    told = []
    for place in ("here", "there"):
        stages = made(folder / place, config, model, 1)
        (stage,) = moved(stages, device) if place == "there" else stages
        asked = Step(session="s", epoch=0, position=0, count=6, tokens=words(3, 6), sample=True)
        told.append(Alone(stage, 20, sampling).step(asked))
    assert told[0].token == told[1].token
    assert told[0].logprobs is not None


def encoded(folder: Path, device: torch.device) -> None:
    config, model = tiny_bert("BertModel")
    (folder / "config.json").write_bytes(config_bytes(config))
    rows = []
    for place in (torch.device("cpu"), device):
        made = build_encoder(folder, stored_tensors(model), config["num_hidden_layers"], "fp32", "embed", place)
        rows.append(made.vector([5, 9, 2], True))
    assert not isinstance(rows[1], There)
    torch.testing.assert_close(rows[1], rows[0], rtol=0, atol=1e-6)


def main() -> None:
    folder = Path(sys.argv[1])
    with stand_in() as device:
        for number, kind in enumerate(KINDS):
            by_transformers(folder / f"all{number}", kind, device)
            lean(folder / f"lean{number}", kind, device)
        for precision in ("int8", "int4"):
            quantised(folder, precision, device)
        int4_numbers(device)
        sampled(folder / "sampled", device)
        encoded(folder, device)
    print("the same")


if __name__ == "__main__":
    main()
