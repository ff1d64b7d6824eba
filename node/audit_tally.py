"""How many steps ran over other nodes' stages, how many of them were drawn to be run again, and what became of those. Pure.

A session is counted once it is over, and drawn or not before it began. Every drawn one ends as one of the words below, and every drawn
step as audited (run again and compared) or dropped, so that what is said of the rate is what was done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

DONE = ("agreed", "wrong", "undecided", "silent")
"""Of these rows were compared, or it is told that there were none to compare."""
DROPPED = ("nobody", "skipped", "short", "failed")
"""Nobody else might be asked; others waited; too few rows were spoken of; the second run broke off."""


class AuditTally:
    """`told(what, name, number)` hears of each count as it grows: `what` is outcome, sessions or steps."""

    def __init__(self, told: Callable[[str, str, int], None] = lambda what, name, number: None) -> None:
        self._told = told
        self.outcomes: Counter[str] = Counter()
        self.sessions: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()

    def ran(self, steps: int) -> None:
        """A session over others' stages is over."""
        self._count("sessions", "run", 1)
        self._count("steps", "run", steps)

    def drew(self, steps: int) -> None:
        """It, or what it was over one of its routes, is to be run again."""
        self._count("sessions", "drawn", 1)
        self._count("steps", "drawn", steps)

    def came(self, word: str, drawn: int, audited: int = 0) -> None:
        """What became of something drawn: of its `drawn` steps so many were `audited`."""
        self._count("outcome", word, 1)
        self._count("sessions", "dropped" if word in DROPPED else "done", 1)
        if word in ("wrong", "undecided"):
            self._count("sessions", "convictions" if word == "wrong" else "unknown", 1)
        audited = min(audited, drawn)
        self._count("steps", "audited", audited)
        self._count("steps", "dropped", drawn - audited)

    def told(self) -> dict[str, Any]:
        """All of it since the node began, for people."""
        sessions = {name: self.sessions[name] for name in ("run", "drawn", "done", "dropped", "convictions", "unknown")}
        steps = {name: self.steps[name] for name in ("run", "drawn", "audited", "dropped")}
        return {"sessions": sessions, "steps": steps, "outcomes": {name: self.outcomes[name] for name in (*DONE, *DROPPED)}}

    def _count(self, what: str, name: str, number: int) -> None:
        counter = {"outcome": self.outcomes, "sessions": self.sessions, "steps": self.steps}[what]
        counter[name] += number
        self._told(what, name, number)
