"""Which node takes a stage over, or should get ready to. Pure: offers in, a node out.

When a stage is lost, the best is a node that runs just this stage for other replies, for most of them: its weights are shared, it is
warm, and where memory is short two nodes with the same stage are one to spare too few. Then one that got ready for it, then one that got
ready for nothing, whose memory is free; then the rest, with the most of the model, then near. Who runs another stage already comes late:
what both take it takes from both. So does the node that asks: it turns the reply into text, which is slower while its worker loads.

Ahead of any loss the same order holds, but nobody is asked to give up what it got ready for another stage, as far as its memory goes: a
route's stages would else all take the same node, which can't stand by for more than its memory holds, and all but one would have none.
Where there are fewer nodes to spare than stages, some stage has none; a node that got ready for another one steps in then, and loads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from protocol.messages import StageSpec
from runtime.routing import Offer

Cost = Callable[[int, int], int]
"""Bytes that layers [first, end) take."""


def stand_by(
    stage: StageSpec,
    route: Sequence[StageSpec],
    offers: Sequence[Offer],
    full: Cost,
    weights: Cost,
    prepared: Collection[StageSpec] = (),
    running: Collection[StageSpec] = (),
    *,
    ahead: bool = False,
) -> StageSpec | None:
    """The stage at the node that could take it over best; None where nobody has room for it.

    `full` with a session's room, `weights` without; `prepared` stages at nodes that got ready for them, `running` those of other replies.
    """

    def crowded(offer: Offer) -> bool:
        """Whether it would have to let go what it got ready for."""
        beside = {(one.first, one.end) for one in prepared if one.peer == offer.peer} - {(stage.first, stage.end)}
        return bool(beside) and _taken(offer, stage, route, full) + sum(weights(*layers) for layers in beside) > offer.memory

    fitting = [offer for offer in offers if _taken(offer, stage, route, full) <= offer.memory and not (ahead and crowded(offer))]
    if not fitting:
        return None

    def order(offer: Offer) -> tuple[int, bool, bool, bool, bool, bool, int, float, str]:
        mine = StageSpec(offer.peer, stage.first, stage.end)
        used = any(one.peer == offer.peer for one in route if one != stage)
        elsewhere = any(one.peer == offer.peer and one != mine for one in running)
        shared = sum(one == mine for one in running)
        return (-shared, elsewhere, mine not in prepared, crowded(offer), used, offer.here, -offer.held, offer.rtt, offer.peer)

    return StageSpec(min(fitting, key=order).peer, stage.first, stage.end)


def _taken(offer: Offer, stage: StageSpec, route: Sequence[StageSpec], full: Cost) -> int:
    """With this stage and the route's others there."""
    return full(stage.first, stage.end) + sum(full(one.first, one.end) for one in route if one.peer == offer.peer and one != stage)
