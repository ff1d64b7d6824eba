"""Whoever is given up gives its room back within one step, wherever it was, and the others' replies are what they would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.errors import MfError
from protocol.messages import Sampling
from runtime import interface as api
from tests.runtime.support import stored_tensors, tiny_config, tiny_model
from tests.runtime.test_engine import engine_with, load
from tests.runtime.test_generation import STAGE, Asker

LONG = [number % 120 for number in range(230)]
COPIES = [1, 2, 3, 4, 5, 6] * 8


@pytest.fixture(params=["fp32", "bf16"])
def asker(request: pytest.FixtureRequest, tmp_path: Path) -> Asker:
    """By transformers' forward one after another, and by the lean step all at once."""
    config = tiny_config()
    engine = engine_with(tmp_path, config)
    load(engine, stored_tensors(tiny_model(config)), stage=STAGE, precision=request.param)
    return Asker(engine)


@pytest.mark.parametrize(
    ("prompt", "passes"),
    [(LONG, 0), (LONG, 1), ([4, 5, 6], 1), ([4, 5, 6], 3), (COPIES, 5)],
    ids=["before its first pass", "within its prompt", "at its first token", "decoding", "with guesses under way"],
)
def test_a_reply_that_is_given_up(prompt: list[int], passes: int, asker: Asker) -> None:
    engine = asker.engine
    wanted = asker.reply([9, 8, 7], reader="other")
    engine._pool.forget_stage(STAGE)
    asker.ask("stays", [9, 8, 7], reader="stays")
    alone = engine.usage().kv
    asker.ask("crowds", [1] * 200, new_max=2, reader="crowds")
    asker.ask("leaves", prompt, new_max=20, reader="leaves")
    for _ in range(passes):
        engine.step()
    before = msgspec.structs.replace(engine.usage())
    engine.close_sequence(api.CloseSequence(session="leaves"))
    after = engine.usage()
    assert (after.sequences, after.left) == (before.sequences - 1, before.left)
    assert before.kv - after.kv == (len(prompt) + 20) * engine._stages[STAGE].runner.token_bytes  # type: ignore[union-attr]
    assert after.kv >= alone or "stays" in asker.ends
    asker.run()
    assert asker.made["stays"] == wanted
    assert "leaves" not in asker.ends
    assert engine.usage().kv == 0


@pytest.mark.parametrize("passes", [0, 1])
def test_a_session_that_is_closed_while_a_step_waits_answers_it(passes: int, asker: Asker) -> None:
    engine, answers = asker.engine, list[Any]()
    engine.open_sequence(api.OpenSequence(stage=STAGE, session="s", tokens_max=250, sampling=Sampling()))
    asker.ask("crowds", [1] * 200, new_max=2)
    engine.take_step(api.Step(session="s", epoch=0, position=0, tokens=LONG, count=len(LONG)), answers.append)
    for _ in range(passes):
        engine.step()
    engine.close_sequence(api.CloseSequence(session="s"))
    assert engine.usage().sequences == 1
    assert len(answers) == 1
    assert isinstance(answers[0], MfError)
    asker.run()
    assert engine.usage().kv == 0


def test_what_a_runner_holds_goes_with_its_sequences(asker: Asker) -> None:
    runner: Any = asker.engine._stages[STAGE].runner
    for number in range(5):
        asker.ask(str(number), LONG[: 20 * number + 5], reader=str(number))
    for _ in range(3):
        asker.engine.step()
    for number in range(5):
        asker.engine.close_sequence(api.CloseSequence(session=str(number)))
    held = runner._caches if hasattr(runner, "_caches") else runner._slabs.places
    assert held == {}
    assert not asker.engine.working
