"""What is kept in a turn goes at its end, once; outside of one nothing is kept."""

from __future__ import annotations

import pytest

from node.turn import Turn


def test_what_is_kept_goes_at_the_end_of_the_outermost_turn() -> None:
    turn, sent = Turn(), list[str]()

    def first() -> None:
        sent.append("first")

    def other() -> None:
        sent.append("other")

    assert not turn.keeps(first)
    with turn:
        assert turn.keeps(first)
        with turn:
            assert turn.keeps(other)
            assert turn.keeps(first)
        assert sent == []
    assert sent == ["first", "other"]
    assert not turn.keeps(first)


def test_what_sending_gives_goes_in_the_same_turn() -> None:
    turn, sent = Turn(), list[int]()

    def again() -> None:
        sent.append(len(sent))
        if len(sent) < 3:
            assert turn.keeps(again)

    with turn:
        turn.keeps(again)
    assert sent == [0, 1, 2]


def test_a_fault_in_a_turn_holds_nothing_back() -> None:
    turn, sent = Turn(), list[int]()

    def broken() -> None:
        with turn:
            turn.keeps(lambda: sent.append(1))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert sent == [1]
    assert not turn.keeps(lambda: None)
