"""The quickest chain over layers, beside one found by trying all."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.layer_path import SPREAD, UNKNOWN_LAYER, UNKNOWN_RTT, Road, Roads

LAYERS = 6
ROAD = st.builds(
    lambda peer, ends, rtt, layer, queue: Road(f"p{peer}", min(ends), max(ends), rtt, layer, queue),
    st.integers(0, 99),
    st.lists(st.integers(0, LAYERS), min_size=2, max_size=2, unique=True),
    st.one_of(st.none(), st.floats(0.0, 1.0)),
    st.one_of(st.none(), st.floats(0.0, 0.1)),
    st.one_of(st.none(), st.floats(0.0, 1.0)),
)


def price(road: Road) -> float:
    layer = UNKNOWN_LAYER if road.layer is None else road.layer
    return (UNKNOWN_RTT if road.rtt is None else road.rtt) + (road.queue or 0.0) + layer * (road.end - road.first)


def by_trying(roads: list[Road], at: int = 0) -> float:
    if at == LAYERS:
        return 0.0
    return min((price(road) + by_trying(roads, road.end) for road in roads if road.first == at), default=float("inf"))


@given(st.lists(ROAD, max_size=12))
def test_no_chain_is_cheaper(roads: list[Road]) -> None:
    found = Roads(LAYERS, roads).cheapest()
    if found is None:
        assert by_trying(roads) == float("inf")
        return
    path, cost = found
    assert (path[0].first, path[-1].end) == (0, LAYERS)
    assert all(before.end == after.first for before, after in pairwise(path))
    assert cost == pytest.approx(by_trying(roads)) == pytest.approx(sum(map(price, path)))


@given(st.lists(ROAD, max_size=12), st.integers(0, 99))
def test_drawn_ones_are_near_best(roads: list[Road], seed: int) -> None:
    drawn, best = Roads(LAYERS, roads).cheapest(random.Random(seed)), Roads(LAYERS, roads).cheapest()
    assert (drawn is None) == (best is None)
    if drawn is not None and best is not None:
        assert sum(map(price, drawn[0])) <= (1 + SPREAD) * best[1] + 1e-9


def test_equals_share_the_work() -> None:
    roads = Roads(2, [Road(f"p{number}", 0, 2, 0.01, 0.001, 0.0) for number in range(10)])
    taken = [found[0][0].peer for seed in range(200) if (found := roads.cheapest(random.Random(seed))) is not None]
    assert len(set(taken)) == 10


def test_a_queue_sends_others_elsewhere() -> None:
    roads = [Road("busy", 0, 2, 0.01, 0.001, 0.5), Road("idle", 0, 2, 0.05, 0.001, 0.0)]
    found = Roads(2, roads).cheapest(random.Random(1))
    assert found is not None
    assert found[0][0].peer == "idle"


def test_the_unknown_isnt_preferred() -> None:
    found = Roads(2, [Road("unknown", 0, 2), Road("measured", 0, 2, 0.1, 0.004, 0.0)]).cheapest()
    assert found is not None
    assert found[0][0].peer == "measured"


def test_nobody_at_all() -> None:
    assert Roads(4, []).cheapest() is None
