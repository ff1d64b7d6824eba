"""Which layers of a model a node serves. Pure: what others announce and what lies here go in, a span of layers comes out.

The problem: thousands of nodes of any speed and memory each take a range of layers, nobody is in charge, everybody sees the others a
little late. A pipeline is as fast as its slowest layer, so the least served layer should be served as well as can be (max-min); and
layers that move are bytes that move, so nobody should move without need.

The choice. Spans are cells of one binary tree over the layers: all, halves, quarters, down to one layer. A node takes the largest cells
that its memory holds (a token costs it the same per layer, and fewer stages are fewer hops). Cells nest, they never overlap half-way:
so every span lies on a whole route without a stage being used in part, and the throughput of the swarm is exactly that of the least
served layer (by induction: what flows through a cell is its own servers' rate plus the lesser of its halves' flows).
What a span is worth is the mean over its layers of (x + FLOOR)^-4, x being the announced throughput of the layer over the mean: the
marginal value under alpha-fair sharing, which is max-min for large alpha (Mo and Walrand 2000), and which unlike the bare minimum tells
two spans apart that both avoid the least layer. Improving moves raise one sum, so moves end; hysteresis bounds their count. Layers
with fewer than two servers come before everything. What is loaded or held counts as a bonus, so a span must be clearly worth more before
bytes move for it. Nodes that look at the same moment see the same gap: each fills it with a chance that lets about enough of them go.

Rejected: the window with the least sum of Petals (overlapping windows need stages that run in part, and with heterogeneous nodes it
moves most of the swarm's bytes), an assignment by a coordinator, and drawing lots in the order of PeerIDs (each departure moves many).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ENOUGH = 2
"""Servers a layer should have at least."""
FLOOR = 0.05
STEEP = 4
UNSERVED, ALONE = 1e8, 1e4
"""What a layer is worth that has no server, or one; the most a served layer can be is FLOOR^-STEEP."""
HELD_BONUS = 0.3
HYSTERESIS = 1.0
"""A move must be worth so many times more than staying, beside the bonus."""
NEAR_BEST = 0.9
LOOK_EVERY = 120.0
"""Seconds between two looks of a node at its span, in the mean."""
GOSSIP_SHARE = 0.1
"""Of all nodes that look, this part sees the same state: those within the time a change takes to be known."""

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, order=True)
class Span:
    """Layers [first, end)."""

    first: int
    end: int


class LayerLoads:
    """What is announced for one model, layer by layer: `tokens` a second and how many `servers`, those that still load included."""

    def __init__(self, layers: int) -> None:
        self.tokens: Floats = np.zeros(layers)
        self.servers: Ints = np.zeros(layers, dtype=np.int64)

    def add(self, span: Span, rate: float) -> None:
        """A node that serves `span` at `rate` tokens a second."""
        self.tokens[span.first : span.end] += rate
        self.servers[span.first : span.end] += 1

    def remove(self, span: Span, rate: float) -> None:
        self.tokens[span.first : span.end] -= rate
        self.servers[span.first : span.end] -= 1


class Choices:
    """The spans one node may take of one model, with what they hold of bytes that lie here already.

    `held[i]` is the part (0..1) of the bytes of `spans[i]` that needn't be fetched.
    """

    def __init__(self, spans: Sequence[Span], held: Sequence[float]) -> None:
        self.spans = list(spans)
        self.held: Floats = np.asarray(held, dtype=np.float64)
        self._firsts: Ints = np.array([span.first for span in spans], dtype=np.int64)
        self._ends: Ints = np.array([span.end for span in spans], dtype=np.int64)
        self._lengths = self._ends - self._firsts

    def worth(self, by_layer: Floats) -> Floats:
        """For each span the mean of its layers' worth, raised by what is held."""
        sums = np.empty(len(by_layer) + 1)
        sums[0] = 0.0
        np.cumsum(by_layer, out=sums[1:])
        return (sums[self._ends] - sums[self._firsts]) / self._lengths * (1.0 + HELD_BONUS * self.held)


def cells(layers: int, fits: Callable[[int, int], bool]) -> list[Span]:
    """The largest cells of the tree over `layers` that fit this node, in order; none where not even a layer does."""
    found: list[Span] = []
    waiting = [Span(0, layers)]
    while waiting:
        cell = waiting.pop()
        if fits(cell.first, cell.end):
            found.append(cell)
        elif cell.end - cell.first > 1:
            middle = (cell.first + cell.end) // 2
            waiting += [Span(middle, cell.end), Span(cell.first, middle)]
    return found


def rate_of(span: Span, seconds_per_layer: float) -> float:
    """Tokens a second through `span` at a node that takes so long for a layer."""
    return 1.0 / (seconds_per_layer * (span.end - span.first))


def join(loads: LayerLoads, choices: Choices, rate: float, rng: random.Random) -> Span | None:
    """The span to announce and then load. `rate`: tokens a second this node would add, about. None: nothing fits."""
    if not choices.spans:
        return None
    return _near_best(choices, choices.worth(_worth_by_layer(loads, rate)), rng)


def reconsider(others: LayerLoads, choices: Choices, mine: Span, rate: float, rng: random.Random) -> Span | None:
    """A span worth moving to, or None: stay. `others` is what is announced without this node; `choices` count `mine` as held."""
    if mine not in choices.spans:
        return join(others, choices, rate, rng)
    worth = choices.worth(_worth_by_layer(others, rate))
    staying = float(worth[choices.spans.index(mine)])
    if float(worth.max()) <= (1.0 + HYSTERESIS) * staying:
        return None
    if rng.random() >= _chance_to_go(others):
        return None
    return _near_best(choices, worth, rng)


def next_look(now: float, rng: random.Random) -> float:
    """When to reconsider next: with jitter, so that nodes don't look in step."""
    return now + LOOK_EVERY * (0.5 + rng.random())


def _worth_by_layer(loads: LayerLoads, rate: float) -> Floats:
    """Of a little more throughput at each layer; half of the node's own counts as there, so that a fast one doesn't overshoot."""
    mean = max(float(loads.tokens.sum()) / len(loads.tokens), rate / 2, 1e-9)
    worth: Floats = (np.maximum(loads.tokens + rate / 2, 0.0) / mean + FLOOR) ** -STEEP
    if loads.servers.min() < ENOUGH:
        worth = worth + np.where(loads.servers <= 0, UNSERVED, np.where(loads.servers < ENOUGH, ALONE, 0.0))
    return worth


def _near_best(choices: Choices, worth: Floats, rng: random.Random) -> Span:
    """One of those nearly as good as the best: nodes that see the same state then don't all take the same span."""
    good = np.flatnonzero(worth >= NEAR_BEST * worth.max())
    return choices.spans[int(good[rng.randrange(len(good))])]


def _chance_to_go(others: LayerLoads) -> float:
    """What is missing below the mean, over what those bring who look before this is seen to be mended."""
    total = float(others.tokens.sum())
    if total <= 0 or others.servers.min() < 1:
        return 1.0
    missing = float(np.maximum(total / len(others.tokens) - others.tokens, 0.0).sum())
    return min(1.0, missing / (GOSSIP_SHARE * total))
