"""What is kept for the next pass, and what never waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.interface import CloseSequence, Made
from runtime.memory import CUT
from runtime.telling import TOGETHER_SECONDS, Telling
from tests.runtime.test_generation import Asker, make


def test_what_comes_fast_goes_together() -> None:
    told: list[list[int]] = []
    telling = Telling(lambda notes: told.append([token for note in notes for token in note.tokens]))
    for number in range(9):
        telling.keep(Made("a", [number]))
        telling.say(number * TOGETHER_SECONDS / 4, may_wait=True)
    assert told == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert not telling


def test_what_comes_slowly_goes_at_once() -> None:
    told: list[int] = []
    telling = Telling(lambda notes: told.append(len(notes)))
    for number in range(4):
        telling.keep(Made("a", [number]))
        telling.say(number * TOGETHER_SECONDS * 1.5, may_wait=True)
    assert told == [1, 1, 1, 1]


def test_what_may_not_wait_is_told_whenever_the_last_was() -> None:
    told: list[int] = []
    telling = Telling(lambda notes: told.append(len(notes)))
    for number in range(3):
        telling.keep(Made("a", [number]))
        telling.say(0.0, may_wait=False)
    telling.say(0.0, may_wait=False)
    assert told == [1, 1, 1]


@pytest.fixture
def asker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asker:
    """Of an engine for which no time passes."""
    engine = make(tmp_path)
    monkeypatch.setattr(engine, "now", lambda: 0.0)
    return Asker(engine)


def test_a_reply_is_told_in_few_parts_and_whole_at_its_end(asker: Asker) -> None:
    parts: list[int] = []
    take = asker.engine._news.tell
    asker.engine._news.tell = lambda notes: (parts.append(len(notes)), take(notes))[1]
    asker.ask("one", [1, 2, 3], new_max=12, drafts=False)
    while asker.engine.working:
        assert "one" not in asker.ends
        asker.engine.step()
    assert parts == [1, 11]
    assert len(asker.made["one"]) == 12
    assert "one" in asker.ends


def test_before_a_prompt_is_computed_others_tokens_are_told(asker: Asker) -> None:
    asker.ask("one", [1, 2, 3], new_max=12, drafts=False)
    for _ in range(4):
        asker.engine.step()
    assert len(asker.made["one"]) == 1
    asker.ask("two", [4, 5, 6], new_max=12)
    computed: list[int] = []
    run = asker.engine._pass
    asker.engine._pass = lambda: (computed.append(len(asker.made["one"])), run())[1]  # type: ignore[method-assign]
    asker.engine.step()
    assert computed == [4]


def test_a_reply_that_ends_takes_the_others_tokens_along(asker: Asker) -> None:
    asker.ask("long", [1, 2, 3], new_max=12)
    asker.ask("short", [4, 5, 6], new_max=4)
    while "short" not in asker.ends:
        asker.engine.step()
    assert len(asker.made["short"]) == 4
    assert len(asker.made["long"]) >= 3
    asker.run()
    assert len(asker.made["long"]) == 12


def test_one_that_is_cancelled_leaves_the_others_their_tokens(asker: Asker) -> None:
    asker.ask("one", [1, 2, 3], new_max=12)
    asker.ask("two", [4, 5, 6], new_max=12)
    for _ in range(3):
        asker.engine.step()
    asker.engine.close_sequence(CloseSequence(session="one"))
    asker.run()
    assert len(asker.made["two"]) == 12
    assert len(asker.made["one"]) <= 3


def test_a_prompt_computed_in_parts_is_heard_of_at_each(asker: Asker) -> None:
    heard: list[tuple[str, int]] = []
    asker.engine._news.tell = lambda notes: heard.extend((note.session, len(note.tokens)) for note in notes)
    for session in ("one", "two"):
        asker.ask(session, [number % 128 for number in range(CUT - 56)], new_max=2, drafts=False)
    asker.engine.step()
    assert sorted(heard) == [("one", 1), ("two", 0)]
    asker.run()
    assert sorted(heard) == [("one", 1), ("one", 1), ("two", 0), ("two", 1), ("two", 1)]
