from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.drafting import MOST, Drafter


def test_what_followed_before_is_drafted() -> None:
    drafter = Drafter([1, 2, 3, 4, 5, 6, 9, 1, 2])
    assert drafter.draft(3) == [3, 4, 5]
    assert Drafter([1, 2, 3]).draft(4) == []
    assert drafter.draft(0) == []


def test_a_loop_is_drafted_beyond_its_end() -> None:
    assert Drafter([7, 1, 2, 7, 1, 2, 7, 1]).draft(4) == [2, 7, 1, 2]


def test_the_length_follows_success() -> None:
    drafter = Drafter([*list(range(100)), 0, 1, 2, 3])
    lengths = []
    for _ in range(4):
        drafted = drafter.draft(MOST)
        lengths.append(len(drafted))
        drafter.learn(len(drafted), len(drafted))
        drafter.extend([*drafted, drafted[-1] + 1])
    assert lengths == [4, 8, 16, 32]
    drafter.learn(32, 5)
    assert len(drafter.draft(MOST)) == 6


def test_what_keeps_failing_is_drafted_rarely() -> None:
    drafter, drafts = Drafter([1, 2] * 50), 0
    for _ in range(100):
        drafted = drafter.draft(MOST)
        drafts += bool(drafted)
        drafter.learn(len(drafted), 0)
        drafter.extend([1, 2])
    assert drafts <= 12


@given(
    st.lists(st.integers(0, 3), max_size=60), st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=20), st.integers(0, 50)
)
def test_drafts_repeat_what_was_there(prompt: list[int], later: list[list[int]], most: int) -> None:
    drafter, tokens = Drafter(prompt), list(prompt)
    for more in later:
        drafted = drafter.draft(most)
        assert len(drafted) <= min(most, MOST)
        assert set(drafted) <= set(tokens)
        drafter.extend(more)
        tokens += more
