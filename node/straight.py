"""Which steps of a session the worker may send on by itself (node/lanes.py).

What goes by a lane and what goes by this node take two connections, so that one could overtake the other. A token's step can't: it
begins when the token before it has come back from the last stage, so all that was sent before has arrived. That holds once a whole way
has been gone in an epoch; the cuts of a prompt, which follow each other closely, and whatever comes of several positions, go by the node.
"""

from __future__ import annotations

from node.lanes import Lanes
from protocol.ids import PeerId
from protocol.messages import StepHead


class Straight:
    """Of one session; `lanes` None: none may."""

    def __init__(self, lanes: Lanes | None) -> None:
        self._lanes = lanes
        self._settled = False

    def begin(self) -> None:
        """Another epoch has begun."""
        self._settled = False

    def lane(self, peer: PeerId, head: StepHead, count: int, resume: int) -> int | None:
        """By which lane to `peer` what comes of this step may go; None: by this node. Called once for each step, in order.

        The next stage has what lies below `resume`.
        """
        settled, self._settled = self._settled, not head.more
        if self._lanes is None or not settled or count != 1 or head.more or head.guessed or head.position < resume:
            return None
        return self._lanes.lane(peer)

    def ended(self, peer: PeerId, lane: int) -> None:
        if self._lanes is not None:
            self._lanes.ended(peer, lane)

    async def warm(self, peer: PeerId) -> None:
        if self._lanes is not None:
            await self._lanes.warm(peer)
