"""Scores of a prompt survive the way to the entry, and what isn't one is the sender's fault."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.prompt_scores import packed_scores, read_scores
from protocol.errors import PeerFault
from protocol.messages import StepHead, TokenLogprob

PROMPT = [3, 14, 15, 92]
ROWS = [[TokenLogprob(14, -0.5), TokenLogprob(7, -0.25)], [TokenLogprob(15, -2.0), TokenLogprob(1, 0.0)]]
HALVES = st.integers(-1000, 0).map(lambda number: number / 2)


def head(position: int, shape: list[int] | None) -> StepHead:
    return StepHead(session=bytes(16), epoch=0, position=position, kind="scores", shape=shape)


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), HALVES), min_size=1, max_size=20), st.integers(0, 3))
def test_what_is_packed_is_read(own: list[tuple[int, float]], more: int) -> None:
    rows = [[TokenLogprob(token, value)] + [TokenLogprob(token // 2, value - 1)] * more for token, value in own]
    shape, raw = packed_scores(rows)
    prompt = [9, *(token for token, _value in own)]
    read = read_scores(head(1, shape), memoryview(raw), prompt, more + 1, None)
    assert read == dict(enumerate(rows, 1))


@pytest.mark.parametrize(
    ("rows", "position", "width", "why"),
    [
        (ROWS, 0, 2, "2 tokens from 0 on"),
        (ROWS, 3, 2, "2 tokens from 3 on"),
        (ROWS, 1, 3, "2 wide"),
        (ROWS, 2, 2, "other tokens"),
        ([[TokenLogprob(14, 0.5)]], 1, 1, "0.5"),
        ([[TokenLogprob(14, math.nan)]], 1, 1, "nan"),
        ([[TokenLogprob(14, -math.inf)]], 1, 1, "inf"),
        ([[TokenLogprob(14, -1.0), TokenLogprob(-1, -1.0)]], 1, 2, "token -1"),
        ([[TokenLogprob(14, -1.0), TokenLogprob(128, -1.0)]], 1, 2, "token 128"),
    ],
)
def test_what_isnt_a_score_of_this_prompt_is_refused(rows: list[list[TokenLogprob]], position: int, width: int, why: str) -> None:
    shape, raw = packed_scores(rows)
    with pytest.raises(PeerFault, match=why):
        read_scores(head(position, shape), memoryview(raw), PROMPT, width, 128)
