"""In which order a reply takes room at stages that may have none. Pure.

Replies that hold room at one stage and wait for it at another would else wait for each other until all their patience is over. So whoever
waits asks the peers in one order, the same for every reply, and holds nothing of those that come after the one it waits for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from protocol.messages import StageSpec

T = TypeVar("T")


def turns(fresh: list[int], stages: Sequence[StageSpec], *, in_turn: bool) -> list[list[int]]:
    """Which stages are opened at the same time: all of them, or `in_turn` those of one peer after another's."""
    if not in_turn:
        return [fresh] if fresh else []
    peers = sorted({stages[index].peer for index in fresh})
    return [[index for index in fresh if stages[index].peer == peer] for peer in peers]


def held_while_waiting(kept: Mapping[StageSpec, T], stages: Sequence[StageSpec]) -> dict[StageSpec, T]:
    """Of the stages that could stay those before all that are waited for, in that order; the others give their room back first."""
    first = min((spec.peer for spec in stages if spec not in kept), default=None)
    return {spec: link for spec, link in kept.items() if first is None or spec.peer < first}
