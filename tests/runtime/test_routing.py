"""Where a request runs: properties of the plan for any offers, and the cases people meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Unavailable
from runtime.routing import Offer, Shape, _paces, _share, plan_route

EMBED, LAYER = 56, 7


def cost(layers: int, head: int = EMBED):
    def bytes_of(first: int, end: int) -> int:
        return (end - first) * LAYER + (EMBED if first == 0 else 0) + (head if end == layers and first != 0 else 0)

    return bytes_of


def shape(layers: int) -> Shape:
    return Shape(layers, cost(layers))


def test_runs_here_when_it_fits_even_if_a_peer_holds_more() -> None:
    plan = plan_route(shape(30), [Offer("peer", 10_000, 0.01, held=99), Offer("me", 300, here=True)])
    assert (plan.kind, [stage.peer for stage in plan.stages]) == ("here", ["me"])


def test_goes_whole_to_the_peer_that_holds_most() -> None:
    offers = [Offer("me", 100, here=True), Offer("near", 400, 0.001, held=1), Offer("holder", 400, 0.05, held=9)]
    plan = plan_route(shape(30), offers)
    assert (plan.kind, plan.stages[0].peer, plan.stages[0].end) == ("peer", "holder", 30)


def test_three_stages_when_no_two_nodes_hold_it() -> None:
    offers = [Offer("me", 120, here=True), *(Offer(f"p{number}", 120, 0.01) for number in range(4))]
    plan = plan_route(shape(30), offers)
    assert plan.kind == "pipeline"
    assert len(plan.stages) == 3
    assert plan.stages[0].peer == "me"


def test_no_route_names_what_is_needed_and_offered() -> None:
    with pytest.raises(Unavailable) as caught:
        plan_route(shape(30), [Offer("me", 60, here=True), Offer("peer", 60)])
    assert caught.value.details["offered"] == {"me": 60, "peer": 60}


def test_no_offers_at_all() -> None:
    with pytest.raises(Unavailable, match="0 nodes"):
        plan_route(shape(4), [])


@given(
    layers=st.integers(2, 96),
    memories=st.lists(st.integers(0, 900), min_size=1, max_size=20),
    here=st.booleans(),
)
def test_every_plan_covers_all_layers_once_within_each_nodes_memory(layers: int, memories: list[int], here: bool) -> None:
    offers = [Offer(f"n{index}", memory, index / 100, here=here and index == 0) for index, memory in enumerate(memories)]
    wanted = shape(layers)
    try:
        plan = plan_route(wanted, offers)
    except Unavailable:
        assert all(memory < wanted.cost(0, layers) for memory in memories)
        return
    room = {offer.peer: offer.memory for offer in offers}
    assert [stage.first for stage in plan.stages] == [0, *[stage.end for stage in plan.stages[:-1]]]
    assert plan.stages[-1].end == layers
    assert len({stage.peer for stage in plan.stages}) == len(plan.stages)
    assert all(wanted.cost(stage.first, stage.end) <= room[stage.peer] for stage in plan.stages)


def test_ends_here_keeps_first_and_last_layer_on_this_node() -> None:
    offers = [Offer("me", 160, here=True), Offer("p1", 120, 0.01), Offer("p2", 120, 0.02)]
    plan = plan_route(shape(30), offers, ends_here=True)
    assert [stage.peer for stage in plan.stages] == ["me", "p1", "p2", "me"]
    assert [(stage.first, stage.end) for stage in plan.stages][::3] == [(0, 1), (29, 30)]


def test_ends_here_never_sends_the_whole_request_away() -> None:
    with pytest.raises(Unavailable, match="both ends"):
        plan_route(shape(30), [Offer("me", 10, here=True), Offer("peer", 10_000)], ends_here=True)


def test_ends_here_with_room_runs_here() -> None:
    assert plan_route(shape(30), [Offer("me", 10_000, here=True), Offer("peer", 99_999)], ends_here=True).kind == "here"


def dealt(offers: list[Offer], layers: int = 30) -> dict[str, int]:
    return {stage.peer: stage.end - stage.first for stage in plan_route(shape(layers), offers).stages}


def test_equal_nodes_get_equal_stages_though_the_ends_carry_more() -> None:
    offers = [Offer("me", 140, here=True), Offer("a", 140), Offer("b", 140)]
    assert dealt(offers) == {"me": 10, "a": 10, "b": 10}


def test_who_is_slow_gets_less() -> None:
    """By powers of two: figures waver, and what is dealt alike is shared."""
    three = [Offer("a", 220, layer=0.001), Offer("b", 219, layer=0.0012), Offer("slow", 218, layer=0.0023)]
    assert dealt(three, 50) == {"a": 17, "slow": 17, "b": 16}
    three[2] = Offer("slow", 218, layer=0.005)
    assert dealt(three, 50) == {"a": 18, "slow": 14, "b": 18}, "of 23 layers the quick ones keep room for five"
    assert dealt([Offer("a", 250, layer=0.001), Offer("new", 250)]) == {"a": 15, "new": 15}


def test_nobody_is_filled_to_the_brim_while_another_idles() -> None:
    offers = [Offer("small", 140), Offer("large", 260)]
    assert dealt(offers) == {"small": 10, "large": 20}


@given(st.lists(st.one_of(st.none(), st.floats(5e-324, 60.0)), min_size=1, max_size=6))
def test_whatever_nodes_say_of_themselves_counts_sixteenfold_at_most(said: list[float | None]) -> None:
    paces = _paces([Offer(str(at), 1, layer=one) for at, one in enumerate(said)])
    assert all(1 / 16 <= pace <= 16 for pace in paces)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=6), st.data())
def test_layers_are_dealt_within_the_rooms(nodes: list[tuple[int, int]], data: st.DataObject) -> None:
    rooms, paces = [room for room, _pace in nodes], [float(pace) for _room, pace in nodes]
    layers = data.draw(st.integers(len(nodes), sum(rooms)))
    counts = _share(layers, rooms, paces)
    assert sum(counts) == layers
    assert all(1 <= count <= room for count, room in zip(counts, rooms, strict=True))
