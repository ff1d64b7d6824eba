"""Here, else one peer that has it loaded, else what is done first: loaded stages, or a peer that loads; pure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.layer_path import Road
from runtime.routing import Offer, Plan, Shape, plan_route, whole_at
from runtime.served_route import BEGINS, LOADED, REPLY, Fresh, plan_served

SHAPE = Shape(30, lambda first, end: end - first)
FAR = [Road("p0", 0, 10, rtt=0.1, layer=0.001), Road("p1", 10, 20, rtt=0.1, layer=0.001), Road("p2", 20, 30, rtt=0.1, layer=0.001)]
OFFERS = [Offer("me", 5, here=True), *(Offer(peer, 30) for peer in ("p0", "p1", "p2", "whole", "other"))]


def planned(roads: list[Road], fresh: Fresh | None = None, seed: int = 1) -> Plan | None:
    return plan_served(SHAPE, OFFERS, roads, random.Random(seed), fresh)


def fresh(weights: int, tokens: int = 10_000, rtt: float = 0.02) -> Fresh:
    return Fresh(Road("other", 0, 30, rtt=rtt, layer=0.001), weights, tokens)


@pytest.mark.parametrize("seed", range(20))
def test_a_peer_with_all_of_it_loaded_comes_before_a_quicker_chain(seed: int) -> None:
    whole = Road("whole", 0, 30, rtt=0.3, layer=0.1, queue=1.0)
    plan = planned([*FAR, whole], seed=seed)
    assert plan is not None
    assert (plan.kind, [stage.peer for stage in plan.stages]) == ("peer", ["whole"])


def test_unless_it_has_no_room_for_one_more() -> None:
    narrow = [Offer("whole", 29), *(Offer(peer, 10) for peer in ("p0", "p1", "p2"))]
    plan = plan_served(SHAPE, narrow, [*FAR, Road("whole", 0, 30)], random.Random(1))
    assert plan is not None
    assert [stage.peer for stage in plan.stages] == ["p0", "p1", "p2"]


def test_loading_pays_where_it_takes_less_than_the_hops() -> None:
    saved = REPLY * (0.3 - 0.02) - BEGINS
    assert planned(FAR, fresh(int(0.99 * saved * LOADED))) is None
    plan = planned(FAR, fresh(int(1.01 * saved * LOADED)))
    assert plan is not None
    assert "330 ms a token" in plan.why, "what was measured, without the lot"


def test_a_short_reply_doesnt_wait_for_loading() -> None:
    weights = 4 * LOADED
    assert planned(FAR, fresh(weights, tokens=20)) is not None
    assert planned(FAR, fresh(weights, tokens=30)) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_peer_that_has_two_stages_loaded_runs_one_of_them(seed: int) -> None:
    near = [Road("p1", 10, 20, rtt=0.001, layer=0.001), Road("p1", 20, 30, rtt=0.001, layer=0.001)]
    plan = planned([*FAR, *near], seed=seed)
    assert plan is not None
    assert [stage.peer for stage in plan.stages] == ["p0", "p1", "p2"]
    assert planned([FAR[0], *near], seed=seed) is None, "nobody else has either"


def test_of_two_ways_around_it_the_quicker_one() -> None:
    both = [Road("other", 10, 20, rtt=0.001, layer=0.001), Road("other", 20, 30, rtt=0.001, layer=0.001)]
    slow = Road("p1", 10, 20, rtt=0.5, layer=0.001)
    plan = planned([FAR[0], slow, FAR[2], *both])
    assert plan is not None
    assert [stage.peer for stage in plan.stages] == ["p0", "other", "p2"]


@given(
    memories=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    roads=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 29), st.integers(1, 31), st.floats(0.0, 1.0)), max_size=30),
    weights=st.integers(0, 1 << 40),
)
def test_here_then_one_peer_then_a_chain_whatever_is_offered(
    memories: list[int], roads: list[tuple[int, int, int, float]], weights: int
) -> None:
    offers = [Offer(f"n{at}", memory, here=at == 0) for at, memory in enumerate(memories)]
    made = [Road(f"n{peer}", first, max(first + 1, end), rtt) for peer, first, end, rtt in roads]
    best = whole_at(SHAPE, offers)
    over = plan_served(SHAPE, offers, made, random.Random(0), fresh(weights))
    assert over is None or len({stage.peer for stage in over.stages}) == len(over.stages)
    if best is not None and best.here:
        assert over is None
        assert plan_route(SHAPE, offers).kind == "here"
    able = {offer.peer for offer in offers if offer.memory >= 30}
    if any(road.peer in able and (road.first, road.end) == (0, 30) for road in made) and not (best and best.here):
        assert over is not None
        assert over.kind == "peer"
    if over is not None:
        assert [stage.first for stage in over.stages] == [0, *[stage.end for stage in over.stages[:-1]]]
        assert over.stages[-1].end == 30
