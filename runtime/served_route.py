"""A route over stages that are loaded already, where there is one; else `routing.py` deals layers. Pure.

What fits here runs here. One peer that has the whole model loaded comes before any chain: it spends one way a token on the network. A chain
of loaded stages and a peer with room for all that would have to load it first are held against each other by when a reply of `REPLY` tokens
would be done, loading included: far hops cost more than a small model's loading, near ones less than a large one's. A chain of stages that
would have to be loaded comes last.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocol.messages import StageSpec
from runtime.layer_path import Road, Roads
from runtime.routing import MAX_STAGES, Offer, Plan, Shape

BEGINS = 3.0
"""Seconds before a node that runs nothing yet begins to load: its worker starts, it asks who holds the model."""
LOADED = 64 << 20
"""Bytes of weights a second that a node fetches, checks and loads; nobody measures it before it is done."""
_TWICE = 2
"""Peers in a path twice for which others are looked for; a route is found in milliseconds, and each one doubles that."""
REPLY = 256
"""Tokens over which loading is reckoned, where the request may have as many."""


@dataclass(frozen=True)
class Fresh:
    """A peer with room for the whole model that has yet to load it: `weights` bytes, for a session of `tokens_max` positions."""

    road: Road
    weights: int
    tokens_max: int


def plan_served(
    shape: Shape, offers: Sequence[Offer], roads: Sequence[Road], rng: random.Random, fresh: Fresh | None = None
) -> Plan | None:
    """The quickest chain of roads whose peers are among `offers` with the memory for a session there; None where there is none, or where
    `fresh` would be done sooner."""
    room = {offer.peer: offer.memory for offer in offers}
    whole = shape.cost(0, shape.layers)
    if any(offer.here and offer.memory >= whole for offer in offers):
        return None
    usable = [road for road in roads if road.end <= shape.layers and shape.cost(road.first, road.end) <= room.get(road.peer, -1)]
    alone = [road for road in usable if (road.first, road.end) == (0, shape.layers)]
    path = _by_different_peers(shape, alone or usable, rng)
    if path is None or len(path) > MAX_STAGES:
        return None
    seconds = _seconds(shape, path)
    if len(path) > 1 and fresh is not None and _sooner(shape, fresh, seconds):
        return None
    stages = [StageSpec(road.peer, road.first, road.end) for road in path]
    why = f"{len(path)} nodes have its layers loaded" if len(path) > 1 else "one peer has it loaded"
    return Plan("pipeline" if len(path) > 1 else "peer", stages, f"{why}; about {1e3 * seconds:.0f} ms a token by what was measured")


def beside(roads: Sequence[Road], running: Collection[StageSpec], shape: Shape, offers: Sequence[Offer]) -> list[Road]:
    """Of `roads` those whose peer has the memory for that stage and for the others that replies of this node are `running` there."""
    taken: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
    for stage in running:
        taken[stage.peer].add((stage.first, stage.end))
    room = {offer.peer: offer.memory for offer in offers if offer.peer in taken}

    def fits(road: Road) -> bool:
        stages = taken[road.peer] | {(road.first, road.end)}
        return sum(shape.cost(*stage) for stage in stages) <= room.get(road.peer, -1)

    return [road for road in roads if road.peer not in taken or fits(road)]


def _by_different_peers(shape: Shape, roads: Sequence[Road], rng: random.Random, twice: int = _TWICE) -> list[Road] | None:
    """The cheapest path, or near it. A peer that is in it twice has both stages loaded, not room for sessions of both: without either."""
    found = Roads(shape.layers, roads).cheapest(rng)
    if found is None:
        return None
    path, at = found[0], Counter(road.peer for road in found[0])
    again = next((road.peer for road in path if at[road.peer] > 1), None)
    if again is None:
        return path
    tried = [one for one in path if one.peer == again] if twice else []
    others = [_by_different_peers(shape, [road for road in roads if road != one], rng, twice - 1) for one in tried]
    return min((other for other in others if other is not None), key=lambda other: _seconds(shape, other), default=None)


def _sooner(shape: Shape, fresh: Fresh, chain: float) -> bool:
    """Whether loading first pays against a chain of `chain` seconds a token."""
    tokens = min(fresh.tokens_max, REPLY)
    return BEGINS + fresh.weights / LOADED + tokens * _seconds(shape, [fresh.road]) < tokens * chain


def _seconds(shape: Shape, path: Sequence[Road]) -> float:
    """What a token takes over these roads, without the lot."""
    found = Roads(shape.layers, path).cheapest()
    assert found is not None
    return found[1]
