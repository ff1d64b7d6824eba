"""What is asked of each bench beside what it found: the lines of one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """`asked` as written ("≥ 0.80"), empty where nothing is; `measured` with its unit."""

    what: str
    asked: str
    measured: str


def table(bars: Sequence[Bar]) -> str:
    """As lines of a table for people, which is also Markdown."""
    rows = [("what", "asked", "measured"), *((bar.what, bar.asked, bar.measured) for bar in bars)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
