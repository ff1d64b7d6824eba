"""Whom a reply avoids after losses, and for how long. Pure: `now` comes in.

A node that died or fell silent may be back in seconds (its supervisor starts it again), one that was full may have room, so avoiding
has an end. One that answered nonsense is avoided for the whole reply. Who accuses others time and again is avoided itself: one liar must
not be able to turn a reply away from all honest nodes. What this node finds itself is never held against it.

A stage that can't go back says "conflict" and is nobody's fault, once after each other loss: everything is then begun anew, and one that
still says so has nothing to go back from.
"""

from __future__ import annotations

import math
from collections import Counter

from node.stage_link import StageLost
from protocol.errors import BadInput, Busy, Conflict
from protocol.ids import PeerId

GONE = 10.0
"""Seconds for which a peer that was lost isn't asked again by this reply."""
FULL = 3.0
OWN = 10.0
"""Seconds for which this node's own worker is left alone where a stage of it is warm elsewhere: it takes some to start and load, and the
reply's text needs it sooner. Where none is, the stage stays here."""
ACCUSATIONS = 2


def is_full(lost: StageLost) -> bool:
    """It had no room just then."""
    return isinstance(lost.cause, Busy) or (lost.cause is not None and "needed" in lost.cause.details)


class Losses:
    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._until: dict[PeerId, float] = {}
        self._full: dict[PeerId, float] = {}
        self._accused: Counter[PeerId] = Counter()
        self._excused: set[PeerId] = set()
        self._starts_until = 0.0

    def note(self, lost: StageLost, now: float) -> PeerId | None:
        """Whom the loss is put down to; None for nobody: a stage that can't go back isn't a bad one."""
        if isinstance(lost.cause, Conflict):
            if lost.peer not in self._excused:
                self._excused.add(lost.peer)
                return None
        else:
            self._excused.clear()  # others stay in the new route, and may be unable to go back
        guilty, how_long = lost.peer, GONE
        if lost.accuser is not None and not lost.peer == lost.accuser == self._me:
            guilty, how_long = self._accused_by(lost.accuser, lost.peer), math.inf
        elif lost.leaving or isinstance(lost.cause, BadInput):
            how_long = math.inf
        elif is_full(lost):
            self._full[guilty] = now + FULL
            return guilty
        elif guilty == self._me:
            self._starts_until = now + OWN
            return guilty
        self._until[guilty] = max(self._until.get(guilty, 0.0), now + how_long)
        return guilty

    def _accused_by(self, accuser: PeerId, accused: PeerId) -> PeerId:
        """Which of the two is believed to be at fault."""
        if accuser == self._me:
            return accused
        self._accused[accuser] += 1
        return accuser if accused == self._me or self._accused[accuser] >= ACCUSATIONS else accused

    def starting(self, now: float) -> set[PeerId]:
        """This node, while its own worker starts again."""
        return {self._me} if now < self._starts_until else set()

    def avoided(self, now: float, *, full: bool = True) -> set[PeerId]:
        """Without `full` those who had no room just then may be asked, to wait in their line."""
        until = [*self._until.items(), *(self._full.items() if full else ())]
        return {peer for peer, end in until if end > now}
