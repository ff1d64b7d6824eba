"""A route over stages that are loaded already, where there is one; else `routing.py` deals layers by memory. Pure.

Loading takes as long as a long reply, so a chain of loaded stages comes before any that would have to be loaded, but for this node itself:
what fits here runs here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from protocol.messages import StageSpec
from runtime.layer_path import Road, Roads
from runtime.routing import MAX_STAGES, Offer, Plan, Shape


def plan_served(shape: Shape, offers: Sequence[Offer], roads: Sequence[Road], rng: random.Random) -> Plan | None:
    """The quickest chain of roads whose peers are among `offers` with the memory for a session there; None where there is none."""
    room = {offer.peer: offer.memory for offer in offers}
    whole = shape.cost(0, shape.layers)
    if any(offer.here and offer.memory >= whole for offer in offers):
        return None
    usable = [road for road in roads if road.end <= shape.layers and shape.cost(road.first, road.end) <= room.get(road.peer, -1)]
    found = Roads(shape.layers, usable).cheapest(rng)
    if found is None or len(found[0]) > MAX_STAGES or len({road.peer for road in found[0]}) < len(found[0]):
        return None
    path, seconds = found
    stages = [StageSpec(road.peer, road.first, road.end) for road in path]
    why = f"{len(path)} nodes have its layers loaded" if len(path) > 1 else "one peer has it loaded"
    return Plan("pipeline" if len(path) > 1 else "peer", stages, f"{why}; about {1e3 * seconds:.0f} ms a token by what was measured")
