"""Answers as people read them: sizes, times and tables."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def size(count: float | None) -> str:
    """1.2 GB, 340 kB, 12 B; a dash when nobody knows."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def ago(at: float | None) -> str:
    if at is None:
        return "never"
    seconds = max(0, time.time() - at)
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"


def word(value: Any) -> str:
    return "–" if value is None else str(value)


def short(name: str, length: int = 16) -> str:
    """A PeerID or model id as long as needed to tell it apart on a screen."""
    return name if len(name) <= length else f"{name[: length - 7]}…{name[-6:]}"


def plain(text: str) -> str:
    """A stranger's text without what would steer the terminal: control characters other than line feed and tab."""
    return _CONTROL.sub("", text)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, or one line saying that it is empty."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = list(rows)
    console = Console(highlight=False)
    if not found:
        console.print(f"[bold]{title}[/bold]: none")
        return
    console.print(f"[bold]{title}[/bold]", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in found:
        table.add_row(*(plain(cell).replace("[", r"\[") for cell in row))
    console.print(table)
