"""A prompt's tokens have the logarithms that transformers' own forward gives them, however they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import BadInput
from protocol.messages import LogitBias, Sampling, TokenLogprob
from runtime.interface import UNCHECKED, Made, Step
from runtime.prompt_scores import scores
from runtime.stage import build_stage
from tests.runtime.alone import Alone
from tests.runtime.support import config_bytes, stored_tensors, tiny_config, tiny_model
from tests.runtime.test_generation import Asker, make

PROMPT = [(7 * at * at + 3) % 128 for at in range(90)]


def reference(prompt: list[int]) -> torch.Tensor:
    """Logarithms of what comes after each position, [positions, vocabulary]."""
    with torch.no_grad():
        return torch.log_softmax(tiny_model(tiny_config()).float()(torch.tensor([prompt])).logits[0], -1)


def check(made: list[list[TokenLogprob]], prompt: list[int], likeliest: int) -> None:
    wanted = reference(prompt)
    assert [row[0].token for row in made] == prompt[1:]
    for at, (own, *top) in enumerate(made):
        assert own.logprob == pytest.approx(float(wanted[at, own.token]), abs=1e-3)
        assert [one.logprob for one in top] == pytest.approx(torch.topk(wanted[at], likeliest).values.tolist(), abs=1e-3)


def test_rows_without_a_token_have_none() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    [row] = scores(logits, [UNCHECKED, 1], 1)
    assert [one.token for one in row] == [1, 0]
    assert [one.logprob for one in row] == pytest.approx(torch.log_softmax(logits, -1)[1, [1, 0]].tolist())
    assert [len(row) for row in scores(logits, [0, 1], 20)] == [4, 4]


@pytest.mark.parametrize("likeliest", [0, 3])
def test_a_whole_models(tmp_path: Path, likeliest: int) -> None:
    asker = Asker(make(tmp_path))
    told: list[Made] = []
    asker.engine._news.tell = told.extend
    for _ in range(2):  # the second time nothing is reused of the first: its rows weren't scored
        told.clear()
        asker.ask("one", PROMPT, Sampling(logprobs=likeliest, temperature=2.0, logit_bias=[LogitBias(5, -50.0)]), new_max=4, score=True)
        asker.run()
        first, *others = [note for note in told if note.scored is not None]
        assert not others
        assert first is next(note for note in told if note.tokens or note.scored is not None)  # empty ones say that it goes on
        check(first.scored or [], PROMPT, likeliest)


def test_a_prompt_of_one_token_has_none(tmp_path: Path) -> None:
    asker = Asker(make(tmp_path))
    told: list[Made] = []
    asker.engine._news.tell = told.extend
    asker.ask("one", [5], Sampling(logprobs=0), new_max=2, score=True)
    asker.run()
    assert told[0].scored == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_bytes(config_bytes(tiny_config()))
    return folder, stored_tensors(tiny_model(tiny_config()))


@pytest.mark.parametrize("cut", [256, 16, 7])
def test_a_last_stages_in_any_cuts(model: tuple[Path, dict[str, Any]], cut: int) -> None:
    folder, tensors = model
    stage = build_stage(folder, dict(tensors), 0, 6, 6, "fp32")
    step = Step(session="s", epoch=0, position=0, tokens=PROMPT, score=[*PROMPT[1:], UNCHECKED])
    done = Alone(stage, 128, Sampling(logprobs=2)).step(step, cut)
    assert done.token is not None
    check(done.scored or [], PROMPT, 2)
    assert Alone(stage, 128, Sampling()).step(Step(session="s", epoch=0, position=0, tokens=PROMPT)).scored is None


def test_scores_that_cant_be_are_refused(model: tuple[Path, dict[str, Any]]) -> None:
    folder, tensors = model
    for end, score in ((6, [1]), (6, [1, 128]), (6, [1, -2]), (3, [1, 1])):
        alone = Alone(build_stage(folder, dict(tensors), 0, end, 6, "fp32"), 8, Sampling())
        with pytest.raises(BadInput):
            alone.step(Step(session="s", epoch=0, position=0, tokens=[1, 2], score=score))
