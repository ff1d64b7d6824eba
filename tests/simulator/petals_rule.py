"""The rule by which servers of Petals choose blocks, written down from its paper and behaviour, to compare with in one run.

A comer takes the window of its full size whose sorted throughputs come first in lexicographic order. Every two minutes or so a server
asks how the least layer would stand if everybody moved to where it is needed, one after the other until nobody moves any more, and moves
itself when the swarm is below BALANCE of that. What the swarm could reach is nearly the same for all who ask within a minute, so it is
worked out once a minute here. What lies on a server's disk plays no part.
"""

from __future__ import annotations

import random

import numpy as np

from runtime.stage_choice import Floats, Span, rate_of
from tests.simulator.serving import Serving, SimServer

BALANCE = 0.75
PERIOD = 120.0
SWEEPS = 4


class PetalsRule:
    def __init__(self) -> None:
        self._reachable = (-1e9, 0.0)

    def join(self, node: SimServer, swarm: Serving) -> Span | None:
        return _neediest(swarm.seen.tokens, _size(node, swarm))

    def reconsider(self, node: SimServer, swarm: Serving) -> Span | None:
        now = swarm.events.now
        if now - self._reachable[0] > 60.0:
            self._reachable = now, _reachable(swarm)
        others = swarm.others(node).tokens
        if float(swarm.seen.tokens.min()) >= BALANCE * self._reachable[1]:
            return None
        return _neediest(others, _size(node, swarm))

    def next_look(self, now: float, rng: random.Random) -> float:
        return now + 2 * PERIOD * rng.random()


def _size(node: SimServer, swarm: Serving) -> int:
    return max(1, min(swarm.scene.layers, int(node.memory)))


def _neediest(tokens: Floats, size: int) -> Span:
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    least = windows.min(axis=1)
    near = np.flatnonzero(least <= least.min())
    if len(near) > 1:
        ordered = np.sort(windows[near], axis=1)
        near = near[np.lexsort(ordered.T[::-1])]
    return Span(int(near[0]), int(near[0]) + size)


def _reachable(swarm: Serving) -> float:
    """The least layer's throughput once everybody has moved as long as that helps."""
    tokens = swarm.seen.tokens.copy()
    told = [(node, *node.told) for node in swarm.nodes if node.told is not None]
    for _ in range(SWEEPS):
        swarm.rng.shuffle(told)
        moved = False
        for index, (node, span, rate) in enumerate(told):
            tokens[span.first : span.end] -= rate
            size = span.end - span.first
            better = _neediest(tokens, size)
            if better != span:
                moved = True
            tokens[better.first : better.end] += rate
            told[index] = node, better, rate_of(better, node.said_seconds)
        if not moved:
            break
    return float(tokens.min())
