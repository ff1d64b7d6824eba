"""When the node hears of the tokens that replies made in a pass.

A message for every pass wakes the node, which takes a core from the next pass: where a token takes 10 ms that is a tenth of it
(SmolLM2-135M through llama.cpp on two cores: 12.0 ms a token told one by one, 10.6 told in fours). So tokens that come faster than
anybody reads go together, and those that don't go at once: what was told lately may wait for the next pass, if that is a short one.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.interface import Made

TOGETHER_SECONDS = 0.04
"""Tokens of so long a time may come as one; text at 25 pictures a second still flows."""

Tell = Callable[[list[Made]], None]


class Telling:
    """Keeps what replies made until `tell` shall have it."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self._kept: list[Made] = []
        self._told_at = float("-inf")

    def __bool__(self) -> bool:
        """Whether anything is kept."""
        return bool(self._kept)

    def keep(self, made: Made) -> None:
        self._kept.append(made)

    def say(self, now: float, *, may_wait: bool) -> None:
        """Tells what is kept, or leaves it for the next pass where that `may_wait` and some were told less than TOGETHER_SECONDS ago."""
        if not self._kept or (may_wait and now - self._told_at < TOGETHER_SECONDS):
            return
        kept, self._kept = self._kept, []
        self._told_at = now
        self.tell(kept)
