"""What doesn't fit is refused with figures that do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.remedies import megabytes, remedies
from runtime.memory import WIDTHS

MILLION = 1_000_000


def cost(precision: str, tokens: int) -> int:
    return int(100 * MILLION * WIDTHS[precision].matrix) + tokens * 10_000


@pytest.mark.parametrize(
    ("precision", "memory", "said"),
    [
        ("bf16", 205, "precision int8 (takes 111MB), at most 500 tokens or --max-memory 210MB would do here"),
        ("bf16", 90, "precision int4 (takes 73MB) or --max-memory 210MB would do here"),
        ("int4", 70, "at most 750 tokens or --max-memory 73MB would do here"),
        ("int4", 60, "--max-memory 73MB would do here"),
    ],
)
def test_the_lightest_change_is_named_with_figures(precision: str, memory: int, said: str) -> None:
    assert remedies(cost, precision, 1_000, memory * MILLION) == said


@given(st.sampled_from(sorted(WIDTHS)), st.integers(1, 100_000), st.integers(0, 500 * MILLION))
def test_what_is_named_fits(precision: str, tokens: int, memory: int) -> None:
    if cost(precision, tokens) <= memory:
        return
    said = remedies(cost, precision, tokens, memory)
    for name in re.findall(r"precision (\w+)", said):
        assert cost(name, tokens) <= memory
    for fewer in re.findall(r"at most (\d+) tokens", said):
        assert cost(precision, int(fewer)) <= memory < cost(precision, int(fewer) + 1)
    (most,) = re.findall(r"--max-memory (\d+)MB", said)
    assert cost(precision, tokens) <= int(most) * MILLION


def test_sizes_are_rounded_up() -> None:
    assert [megabytes(size) for size in (1, MILLION, MILLION + 1)] == ["1MB", "1MB", "2MB"]
