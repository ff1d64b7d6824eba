"""The quickest chain of nodes over a model's layers. Pure; `rng` is an argument.

Boundaries between layers are the places, a node that serves layers [a, b) is a road from a to b, and its price is what a token spends
there: the way to it, its queue, its layers. All figures are the asker's own measurements where it has them. The shortest path over at
most 80 or so boundaries is one sweep in their order; of the many nodes on the same road only the cheapest matters, which numpy finds in
one sort. Under load everybody who measures the same would choose the same nodes, so prices are drawn up to SPREAD higher, each road for
itself: what comes out is never worse than that, and is spread over the near-best.

The time between two nodes isn't known to the asker; it takes its own way to the next one for it. Rejected: all pairs of round trips
(nobody has measured them), and the k shortest paths (drawing gives their variety at the price of one).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPREAD = 0.25
UNKNOWN_RTT = 0.15
UNKNOWN_LAYER = 0.005
"""Seconds, what nobody has measured is priced at: no better than a far and a slow one."""


@dataclass(frozen=True)
class Road:
    """Layers [first, end) at `peer`. Seconds: `rtt` to it, `queue` before a step's turn, `layer` for one token in one layer."""

    peer: str
    first: int
    end: int
    rtt: float | None = None
    layer: float | None = None
    queue: float | None = None


class Roads:
    """Many roads, as columns, so that a path is found in a few milliseconds among ten thousand."""

    def __init__(self, layers: int, roads: Sequence[Road]) -> None:
        self.layers = layers
        self.roads = roads
        self._first = np.array([road.first for road in roads], dtype=np.int64)
        self._end = np.array([road.end for road in roads], dtype=np.int64)
        rtt = np.array([UNKNOWN_RTT if road.rtt is None else road.rtt for road in roads])
        layer = np.array([UNKNOWN_LAYER if road.layer is None else road.layer for road in roads])
        queue = np.array([road.queue or 0.0 for road in roads])
        self._price = rtt + queue + layer * (self._end - self._first)

    def cheapest(self, rng: random.Random | None = None) -> tuple[list[Road], float] | None:
        """Roads from 0 to the last layer and their price in seconds a token; None where there is a gap. With `rng` near-best ones too."""
        price = self._price
        if rng is not None:
            price = price * (1.0 + SPREAD * np.random.default_rng(rng.getrandbits(64)).random(len(price)))
        best: list[float] = [0.0] + [float("inf")] * self.layers
        came: list[int] = [-1] * (self.layers + 1)
        for index in self._one_each(price):
            start, end = int(self._first[index]), int(self._end[index])
            total = best[start] + float(price[index])
            if total < best[end]:
                best[end], came[end] = total, index
        if came[self.layers] < 0:
            return None
        path, at = [], self.layers
        while at > 0:
            path.append(self.roads[came[at]])
            at = path[-1].first
        path.reverse()
        return path, best[self.layers]

    def _one_each(self, price: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[int]:
        """The cheapest road for each (first, end), in the order of first."""
        place = self._first * (self.layers + 1) + self._end
        order = np.lexsort((price, place))
        sorted_places = place[order]
        leading = np.ones(len(order), dtype=bool)
        leading[1:] = sorted_places[1:] != sorted_places[:-1]
        chosen: list[int] = order[leading].tolist()
        return chosen
