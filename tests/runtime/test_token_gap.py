"""How far a token lies behind, and that rows checked in an audit are the rows that ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import BadInput
from protocol.messages import Sampling
from runtime.interface import UNCHECKED, Step
from runtime.sampler import Ask, choose
from runtime.stage import Stage, build_stage
from runtime.token_gap import token_gap
from tests.runtime.alone import Alone
from tests.runtime.support import config_bytes, stored_tensors, tiny_config, tiny_model

ROWS = 16


def sample(logits: torch.Tensor, sampling: Sampling, seed: int, position: int) -> int:
    return choose(logits[None], [Ask(sampling, seed, position)])[0].token


WAYS = [Sampling(), Sampling(temperature=0.8), Sampling(temperature=1.2, top_p=0.9), Sampling(temperature=0.7, top_k=20)]


@pytest.mark.parametrize("sampling", WAYS, ids=lambda way: f"t{way.temperature} p{way.top_p} k{way.top_k}")
def test_the_token_sampled_has_no_gap_another_has(sampling: Sampling) -> None:
    torch.manual_seed(2)
    for position in range(50):
        logits = torch.randn(500) * 3
        token = sample(logits, sampling, 11, position)
        assert token_gap(logits, sampling, 11, position, token) == pytest.approx(0.0, abs=1e-5)
        assert token_gap(logits, sampling, 11, position, (token + 1) % 500) > 0


def test_a_little_noise_makes_a_little_gap() -> None:
    torch.manual_seed(3)
    sampling, gaps = Sampling(temperature=0.9, top_p=0.95), []
    for position in range(300):
        logits = torch.randn(500) * 3
        token = sample(logits + 0.02 * torch.randn(500), sampling, 5, position)
        gaps.append(token_gap(logits, sampling, 5, position, token))
    assert max(gaps) < 0.3
    assert sum(gap > 0 for gap in gaps) < 60


def test_other_dice_show() -> None:
    torch.manual_seed(4)
    logits = torch.randn(500)
    way = Sampling(temperature=1.0)
    gaps = [token_gap(logits, way, 5, at, sample(logits, way, 6, at)) for at in range(100)]
    assert sum(gap > 1.5 for gap in gaps) > 50


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_bytes(config_bytes(tiny_config()))
    return folder, stored_tensors(tiny_model(tiny_config()))


def built(model: tuple[Path, dict[str, Any]], first: int = 0, end: int = 6) -> Stage:
    folder, tensors = model
    return build_stage(folder, dict(tensors), first, end, 6, "fp32")


def test_a_replys_own_tokens_have_no_gap_and_changed_ones_do(model: tuple[Path, dict[str, Any]]) -> None:
    stage = built(model)
    prompt, made = [5, 6, 7], []
    run = Alone(stage, 64, Sampling())
    token = run.step(Step(session="s", epoch=0, position=0, tokens=prompt)).token
    for position in range(3, 3 + 2 * ROWS):
        assert token is not None
        made.append(token)
        token = run.step(Step(session="s", epoch=0, position=position, tokens=[made[-1]])).token
    everything = [*prompt, *made]
    given = [UNCHECKED] * 2 + made
    again = Alone(stage, 64, Sampling()).step(Step(session="a", epoch=0, position=0, tokens=everything, check=[*given, UNCHECKED]))
    assert again.token == token
    assert again.gaps is not None
    assert (again.gaps[:2], again.gaps[-1]) == ([UNCHECKED] * 2, UNCHECKED)
    assert max(again.gaps[2:-1]) < 1e-4
    changed = [*given[:9], (given[9] + 1) % 128, *given[10:]]
    other = Alone(stage, 64, Sampling()).step(Step(session="a", epoch=0, position=0, tokens=everything, check=[*changed, UNCHECKED]))
    assert other.gaps is not None
    assert other.gaps[9] > 1e-3


def test_the_last_stage_gives_its_rows_before_the_head_when_asked(model: tuple[Path, dict[str, Any]]) -> None:
    tokens, count = list(range(5, 5 + 2 * ROWS + 3)), 2 * ROWS + 3
    stage = built(model)
    plain = Alone(stage, 64, Sampling()).step(Step(session="s", epoch=0, position=0, tokens=tokens, tail=True))
    assert plain.hidden is not None
    assert len(plain.hidden) == count * stage.hidden * 4
    checked = Step(session="s", epoch=0, position=0, tokens=tokens, tail=True, check=[UNCHECKED] * count)
    again = Alone(stage, 64, Sampling()).step(checked)
    assert again.hidden is not None
    rows = [torch.frombuffer(bytearray(raw), dtype=torch.float32) for raw in (plain.hidden, again.hidden)]
    assert torch.allclose(rows[0], rows[1], atol=1e-4)
    assert Alone(stage, 64, Sampling()).step(Step(session="s", epoch=0, position=0, tokens=tokens)).hidden is None


def test_checks_that_cant_be_are_refused(model: tuple[Path, dict[str, Any]]) -> None:
    whole, front = Alone(built(model), 8, Sampling()), Alone(built(model, 0, 3), 8, Sampling())
    for sequence, check in ((whole, [1]), (whole, [1, 128]), (whole, [1, -2]), (front, [1, 1])):
        with pytest.raises(BadInput):
            sequence.step(Step(session="s", epoch=0, position=0, tokens=[1, 2], check=check))
    assert whole.step(Step(session="s", epoch=0, position=0, tokens=[1, 2])).token is not None
