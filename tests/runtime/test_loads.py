"""What is loaded between passes: those that run go on meanwhile, and it comes to what loading at once comes to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import BadInput, Busy, MfError, NotFound
from runtime import interface as api
from runtime import runners
from runtime.engine import Engine
from runtime.loads import Loads
from runtime.sliced import Sliced
from tests.runtime.support import lay_out, load_message, stored_tensors, tiny_config, tiny_model
from tests.runtime.test_engine import engine_with, opening

SECOND = "second"


def begin(engine: Engine, stage: str, **changes: Any) -> list[Any]:
    """What it is answered, once it is."""
    answers: list[Any] = []
    fd, places, length = lay_out(stored_tensors(tiny_model(tiny_config())))
    message = load_message(places, length, 0, 6, 6)
    message.stage = stage
    for name, value in changes.items():
        setattr(message, name, value)
    try:
        engine.begin_load(message, [fd], answers.append)
    finally:
        os.close(fd)
    return answers


def finish(engine: Engine) -> None:
    while engine.working:
        engine.step()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return engine_with(tmp_path, tiny_config())


def test_a_reply_goes_on_while_another_stage_loads(engine: Engine) -> None:
    first = begin(engine, "0-6-bf16")
    finish(engine)
    assert isinstance(first[0], api.StageLoaded)
    engine.open_sequence(opening(64))
    alone: list[int] = []
    engine.take_step(api.Step(session="s", epoch=0, position=0, tokens=[1, 2, 3], count=3), lambda done: alone.append(done.token))
    finish(engine)
    loaded, steps = begin(engine, SECOND), 0
    while not loaded:
        answers: list[Any] = []
        step = api.Step(session="s", epoch=steps + 1, position=3, tokens=[alone[0]], count=1)
        engine.take_step(step, answers.append)
        engine.step()
        assert answers, "a token after each slice"
        steps += 1
    assert steps > 4
    assert (loaded[0].self_test, loaded[0].lean) == (first[0].self_test, first[0].lean)


def test_what_comes_counts_before_it_is_there(tmp_path: Path) -> None:
    engine = engine_with(tmp_path, tiny_config())
    first = begin(engine, "one")
    room = engine._room.for_sequences
    finish(engine)
    assert engine._room.for_sequences == room
    assert first[0].bytes > 0
    with pytest.raises(BadInput, match="loaded already"):
        begin(engine, "one")
    begin(engine, SECOND)
    with pytest.raises(BadInput, match="loaded already"):
        begin(engine, SECOND)
    small = engine_with(tmp_path / "small", tiny_config(), memory=first[0].bytes * 7 // 2)
    begin(small, "one")
    with pytest.raises(Busy, match="no room for layers"):
        begin(small, SECOND)


def test_one_that_is_unloaded_while_it_loads_leaves_nothing(engine: Engine) -> None:
    free, answers = engine._room.for_sequences, begin(engine, "one")
    engine.step()
    engine.unload(api.Unload(stage="one"))
    assert isinstance(answers[0], NotFound)
    assert not engine.working
    assert engine._room.for_sequences == free
    again = begin(engine, "one")
    finish(engine)
    assert isinstance(again[0], api.StageLoaded)


def test_one_that_fails_says_why_and_leaves_nothing(engine: Engine) -> None:
    free, answers = engine._room.for_sequences, begin(engine, "one", task="embed", end=3)
    finish(engine)
    assert isinstance(answers[0], BadInput)
    assert engine._room.for_sequences == free


def test_a_fault_of_foreign_code_is_told_by_its_kind_alone() -> None:
    def work() -> Sliced[api.StageLoaded]:
        yield
        raise ZeroDivisionError("what it was given")

    loads, answers = Loads(), list[Any]()
    loads.begin("one", work(), answers.append)
    loads.step()
    assert len(loads) == 0
    assert isinstance(answers[0], MfError)
    assert answers[0].message == "the worker failed in load_stage: ZeroDivisionError"


def test_what_was_compared_before_isnt_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(engine, "one")
    finish(engine)
    said = first[0].lean
    assert said.startswith("run lean, as transformers gives at 40 positions")

    def never(*_args: Any) -> Any:
        raise AssertionError("compared again")

    monkeypatch.setattr(runners.lean_check, "checking", never)
    again = begin(engine, SECOND, checked=said)
    finish(engine)
    assert (again[0].lean, again[0].self_test) == (said, first[0].self_test)


def test_the_reference_is_never_lean(engine: Engine) -> None:
    answers = begin(engine, "one", precision="fp32")
    finish(engine)
    assert answers[0].lean == ""
