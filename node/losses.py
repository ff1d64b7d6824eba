"""Whom a reply avoids after losses, and for how long. Pure: `now` comes in.

A node that died or fell silent may be back in seconds (its supervisor starts it again), one that was full may have room, so avoiding
has an end. One that answered nonsense is avoided for the whole reply. Who accuses others time and again is avoided itself: one liar must
not be able to turn a reply away from all honest nodes.
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
OWN = 0.0
"""This node's own worker starts again by itself, and a reply's text needs it anyway: its stage stays here."""
ACCUSATIONS = 2


def is_full(lost: StageLost) -> bool:
    """It had no room just then."""
    return isinstance(lost.cause, Busy) or (lost.cause is not None and "needed" in lost.cause.details)


class Losses:
    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._until: dict[PeerId, float] = {}
        self._accused: Counter[PeerId] = Counter()

    def note(self, lost: StageLost, now: float) -> PeerId | None:
        """Whom the loss is put down to; None for nobody: a stage that can't go back isn't a bad one."""
        if isinstance(lost.cause, Conflict):
            return None
        guilty, how_long = lost.peer, GONE
        if lost.accuser is not None:
            self._accused[lost.accuser] += 1
            if lost.peer == self._me or self._accused[lost.accuser] >= ACCUSATIONS:
                guilty = lost.accuser
            how_long = math.inf
        elif lost.leaving or isinstance(lost.cause, BadInput):
            how_long = math.inf
        elif is_full(lost):
            how_long = FULL
        elif guilty == self._me:
            how_long = OWN
        self._until[guilty] = max(self._until.get(guilty, 0.0), now + how_long)
        return guilty

    def avoided(self, now: float) -> set[PeerId]:
        return {peer for peer, until in self._until.items() if until > now}
