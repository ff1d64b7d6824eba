"""How a reply bears stages without room: others that have the model first, then the line at a full one, then `Busy`. Pure: `now` comes in.

A stage without room isn't broken, and its node did nothing wrong. As long as there is a route without it that one is taken, and a refusal
costs a round trip; so nobody is asked to keep a reply in line at first. Only where all that is left is full the reply asks to wait, at
whichever the route names, as long as the line's patience has left. Whoever isn't in by then, or finds the line full, is told when to come
back.

A reply that has begun is worth more than one that hasn't: whoever reads it can't simply ask again. It bears three times as much, and a line
that let it down is no end of it. Nor does it stay in one for long: while others are served there, somebody else loads the same layers (one
reply stood 25 seconds in line for a stage that three nodes had loaded meanwhile). After a turn it looks around, and comes back if need be.
"""

from __future__ import annotations

from typing import Any

from node.losses import is_full
from node.stage_link import LINE_MOST, StageLost
from node.waiting_line import PATIENCE
from protocol.errors import Busy

BEGUN = 3 * PATIENCE
"""Seconds of a reply that has begun."""
TURN = 3.0
"""Seconds that such a one stays in a line before it looks for another way."""
NEVER = 20.0
"""Seconds of patience with a node that says a session wouldn't fit even if it were alone: it was announced otherwise."""
PAUSE = 0.25
LONGEST_PAUSE = 1.0


class StagePatience:
    """`waits`: the stages of the next route are asked to keep the reply in line."""

    def __init__(self) -> None:
        self.waits = False
        self._since: float | None = None
        self._tries = 0
        self._begun = False

    def refused(self, lost: StageLost, now: float) -> float:
        """Seconds to pause before the next try. Raises `Busy`, or what the node said where it would never have room, once patience ends."""
        assert is_full(lost)
        if self._since is None:
            self._since = now
        waited = lost.cause is not None and "position" in lost.cause.details
        never = not isinstance(lost.cause, Busy)
        over = now - self._since >= (NEVER if never else self._most)
        if over or (self.waits and waited and not self._begun):
            raise (lost.cause if never and lost.cause is not None else busy(lost)) from lost
        if not self.waits:
            return 0.0
        self._tries += 1  # it keeps nobody in line
        return min(PAUSE * self._tries, LONGEST_PAUSE)

    def left(self, now: float) -> float:
        """Seconds that stages may keep it in line; 0: they mustn't."""
        if not self.waits:
            return 0.0
        left = max(PAUSE, self._most - (now - self._since if self._since is not None else 0.0))
        return min(left, TURN) if self._begun else left

    def moved(self) -> None:
        """The reply got on: patience begins anew."""
        self._since, self._tries, self._begun = None, 0, True

    @property
    def _most(self) -> float:
        return BEGUN if self._begun else PATIENCE


def busy(lost: StageLost) -> Busy:
    """What the asker is told of a stage without room; figures that came from a peer are bounded."""
    details = lost.cause.details if lost.cause is not None else {}
    position, seconds = (_bounded(details.get(name), most) for name, most in (("position", LINE_MOST), ("retry_after", 600)))
    told = {"retry_after": seconds or 5} | ({"position": position} if position else {})
    return Busy(lost.message, hint=f"ask again in {seconds or 5} s", details=told)


def _bounded(figure: Any, most: int) -> int:
    return min(max(figure, 0), most) if isinstance(figure, int) else 0
