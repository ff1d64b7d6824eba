"""Where a request runs: here, whole at one peer, or as a pipeline. Pure: offers in, plan out.

Here if it fits; else whole at the peer that holds the most of it and answers quickest; else the fewest stages that hold
all layers. Within a count of stages the nodes with the most memory are taken, this node first among equals (its prompt
then never leaves as text), and layers are dealt so that the stages take equally long, by what nodes said of a layer (alike where nobody
did): the longest stage is what replies queue for, and what takes longest to compute again when it is lost. For that no node gives up
more than half of what it would keep free if all were filled alike. The first stage also embeds, the last also carries the head (and the
tied embedding). Rejected: by memory alone (17 of 30 layers went to the middle one of three equal nodes, as the ends carry embeddings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log2
from statistics import median

from protocol.errors import Unavailable
from protocol.messages import StageSpec

MAX_STAGES = 16
_STEPS = 4
"""Powers of two by which a node counts as slower or quicker than one in the middle."""


@dataclass(frozen=True)
class Offer:
    """A node that may run layers. `memory` bytes it lends, `rtt` seconds (0 here), `held` bytes of the model it has, `layer` seconds that a
    token takes in a layer, if anybody said so."""

    peer: str
    memory: int
    rtt: float = 0.0
    held: int = 0
    here: bool = False
    layer: float | None = None


@dataclass(frozen=True)
class Shape:
    """A model as the planner sees it: `layers` count and `cost(first, end)`, the bytes a stage of these layers takes."""

    layers: int
    cost: Callable[[int, int], int]


@dataclass(frozen=True)
class Plan:
    """`kind` here|peer|pipeline; `why` a sentence for people."""

    kind: str
    stages: list[StageSpec]
    why: str
    excluded: list[str] = field(default_factory=list)


def plan_route(shape: Shape, offers: Sequence[Offer], *, ends_here: bool = False) -> Plan:
    """The route, or `Unavailable` saying how much room was asked for and offered.

    `ends_here` keeps the first and the last layer, and with them embedding, head and sampling, on this node.
    """
    whole, best = shape.cost(0, shape.layers), whole_at(shape, offers, ends_here=ends_here)
    if best is not None:
        kind, place = ("here", "this node") if best.here else ("peer", "one peer")
        return Plan(kind, [StageSpec(best.peer, 0, shape.layers)], f"the whole model ({_mib(whole)}) fits {place}")
    if ends_here:
        return _with_ends_here(shape, offers)
    ordered = sorted(offers, key=lambda offer: (-offer.memory, not offer.here, -offer.held, offer.rtt, offer.peer))
    for count in range(2, min(len(ordered), MAX_STAGES, shape.layers) + 1):
        stages = _deal(shape, ordered[:count]) or _deal(shape, [offer for offer in ordered if not offer.here][:count])
        if stages is not None:
            return Plan("pipeline", stages, f"the whole model ({_mib(whole)}) fits no node that may run it; {count} together hold it")
    raise _no_route(whole, offers)


def whole_at(shape: Shape, offers: Sequence[Offer], *, ends_here: bool = False) -> Offer | None:
    """Where the whole model would go: here, else to the peer with the most of it, else to the nearest; None: it fits nowhere."""
    whole = shape.cost(0, shape.layers)
    fitting = [offer for offer in offers if offer.memory >= whole and (offer.here or not ends_here)]
    return min(fitting, key=lambda offer: (not offer.here, -offer.held, offer.rtt, offer.peer), default=None)


def _no_route(whole: int, offers: Sequence[Offer], why: str = "") -> Unavailable:
    return Unavailable(
        f"no route: the model takes {_mib(whole)} and the {len(offers)} nodes that may run it lend "
        f"{_mib(sum(offer.memory for offer in offers))} between them{why}",
        hint="or let more peers in (--privacy, mf-node trust)",
        details={"needed": whole, "offered": {offer.peer: offer.memory for offer in offers}},
    )


def _with_ends_here(shape: Shape, offers: Sequence[Offer]) -> Plan:
    """First and last layer here, the rest over the fewest others."""
    whole, last = shape.cost(0, shape.layers), shape.layers - 1
    here = next((offer for offer in offers if offer.here), None)
    ends = shape.cost(0, 1) + shape.cost(last, shape.layers)
    if here is None or last < 2 or here.memory < ends:
        raise _no_route(whole, offers, f"; both ends on this node take {_mib(ends)}")
    others = sorted((offer for offer in offers if not offer.here), key=lambda offer: (-offer.memory, -offer.held, offer.rtt, offer.peer))
    for count in range(1, min(len(others), MAX_STAGES - 2, last - 1) + 1):
        chosen = others[:count]
        room = [_most_between(shape, offer) for offer in chosen]
        if min(room) >= 1 and sum(room) >= last - 1:
            stages, first = [StageSpec(here.peer, 0, 1)], 1
            for offer, size in zip(chosen, _share(last - 1, room, _paces(chosen)), strict=True):
                stages.append(StageSpec(offer.peer, first, first + size))
                first += size
            stages.append(StageSpec(here.peer, last, shape.layers))
            return Plan("pipeline", stages, f"both ends stay on this node; {count} others hold the layers between")
    raise _no_route(whole, offers)


def _most_between(shape: Shape, offer: Offer) -> int:
    """Most layers this node can hold as a stage in the middle; layers of a model are taken as alike."""
    fits = [size for size in range(1, shape.layers) if shape.cost(1, min(1 + size, shape.layers - 1)) <= offer.memory]
    return max(fits, default=0)


def _deal(shape: Shape, chosen: Sequence[Offer]) -> list[StageSpec] | None:
    """Contiguous ranges over `chosen`, this node first, the roomiest of the others last; None when they can't hold all layers."""
    head, *others = sorted(chosen, key=lambda offer: not offer.here)
    if not others:
        return None
    order = [head, *others[1:], others[0]]  # the ends carry the embedding and the head
    room = [_most_layers(shape, offer, index, len(order)) for index, offer in enumerate(order)]
    if min(room) < 1 or sum(room) < shape.layers:
        return None
    counts = _share(shape.layers, room, _paces(order))
    stages, first = [], 0
    for offer, count in zip(order, counts, strict=True):
        stages.append(StageSpec(offer.peer, first, first + count))
        first += count
    if any(shape.cost(stage.first, stage.end) > offer.memory for stage, offer in zip(stages, order, strict=True)):
        return None
    return stages


def _most_layers(shape: Shape, offer: Offer, index: int, count: int) -> int:
    """Most layers this node can hold as stage `index` of `count`; layers of a model are taken as alike."""
    if index == 0:
        fits = [end for end in range(1, shape.layers) if shape.cost(0, end) <= offer.memory]
        return max(fits, default=0)
    if index == count - 1:
        fits = [first for first in range(1, shape.layers) if shape.cost(first, shape.layers) <= offer.memory]
        return shape.layers - min(fits, default=shape.layers)
    return _most_between(shape, offer)


def _paces(offers: Sequence[Offer]) -> list[float]:
    """What a layer takes at each beside one in the middle, to the power of two next to 1: figures waver, and replies that are dealt a model
    alike share its loaded stages. Who wasn't measured is taken for one in the middle, and nobody's word for more than sixteenfold."""
    known = [log2(offer.layer) for offer in offers if offer.layer]
    middle = median(known) if known else 0.0
    steps = [int(log2(offer.layer) - middle) if offer.layer else 0 for offer in offers]
    return [2.0 ** max(-_STEPS, min(_STEPS, step)) for step in steps]


def _share(layers: int, room: Sequence[int], pace: Sequence[float]) -> list[int]:
    """`layers` dealt so that the longest stage is as short as it can be, at least one each, none over its room.

    Where all would be filled to a part of their room if it were dealt by room alone, none gives more than half of the rest for that. Needs
    `layers` of room in all.
    """
    total = sum(room)
    most = [max(1, -(-layers * space // total), space * (total + layers) // (2 * total)) for space in room]
    counts = [1] * len(room)
    for _ in range(layers - len(room)):
        open_ = (at for at in range(len(room)) if counts[at] < most[at])
        counts[min(open_, key=lambda at: ((counts[at] + 1) * pace[at], counts[at] / room[at]))] += 1
    return counts


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
