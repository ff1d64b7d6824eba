"""Progress of long work, on standard error: a bar on a terminal, a line per stage and tenth elsewhere, nothing on standard output."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

_WORDS = {
    "import": "dequantising",
    "read": "reading",
    "hash": "hashing",
    "store": "storing shards",
    "fetch": "fetching",
    "place": "placing",
    "push": "sending shards",
    "drain": "handing over shards",
    "rebalance": "moving shards",
}


class Progress:
    """Give it as `on_event`; events other than progress pass by."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
            self._bar = Bars(*columns, console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("event") == "note":
            self._note(str(event.get("text", "")))
        if event.get("event") != "progress":
            return
        stage = str(event.get("stage", ""))
        done, total = int(event.get("done") or 0), int(event.get("total") or 0)
        words = _WORDS.get(stage, stage)
        if self._bar is None:
            self._line(stage, words, done, total)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(words, total=total or None)
        self._bar.update(self._tasks[stage], completed=done, total=total or None)

    def _note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            sys.stderr.write(f"{text}\n")

    def _line(self, stage: str, words: str, done: int, total: int) -> None:
        tenth = done * 10 // total if total else 0
        if self._said.get(stage, -1) < tenth:
            self._said[stage] = tenth
            sys.stderr.write(f"{words}: {done} of {total}\n" if total else f"{words}\n")
            sys.stderr.flush()
