"""What would do where a model doesn't fit: said before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable

from runtime.memory import WIDTHS

_MEGABYTE = 1_000_000
_LIGHTER = ("int8", "int4")
"""Precisions that every node has, the heaviest first."""
_LEAST = 64
"""A session of fewer positions than this is no remedy."""


def remedies(cost: Callable[[str, int], int], precision: str, tokens: int, memory: int) -> str:
    """`cost(precision, tokens)` bytes of all that is to run in `memory` bytes on one node; a hint that names figures."""
    ways = []
    for name in _LIGHTER:
        if WIDTHS[name].matrix < WIDTHS[precision].matrix and cost(name, tokens) <= memory:
            ways.append(f"precision {name} (takes {megabytes(cost(name, tokens))})")
            break
    fewer = _most_tokens(lambda count: cost(precision, count), tokens, memory)
    if fewer >= _LEAST:
        ways.append(f"at most {fewer} tokens")
    ways.append(f"--max-memory {megabytes(cost(precision, tokens))}")
    return f"{', '.join(ways[:-1])} or {ways[-1]} would do here" if len(ways) > 1 else f"{ways[0]} would do here"


def _most_tokens(cost: Callable[[int], int], tokens: int, memory: int) -> int:
    """The most that fit, fewer than `tokens`; 0 where none do."""
    low, high = 0, tokens
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= memory else (low, middle)
    return low


def megabytes(size: int) -> str:
    """Rounded up, as --max-memory takes it."""
    return f"{-(-size // _MEGABYTE)}MB"
