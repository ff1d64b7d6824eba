"""Which layers a node serves: what always holds, and the cases that matter in small swarms."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.stage_choice import ENOUGH, LOOK_EVERY, Choices, LayerLoads, Span, cells, join, next_look, rate_of, reconsider

RNG = random.Random(1)


def choices(layers: int, memory: int, held: dict[Span, float] | None = None) -> Choices:
    spans = cells(layers, lambda first, end: end - first <= memory)
    return Choices(spans, [(held or {}).get(span, 0.0) for span in spans])


@given(layers=st.integers(1, 128), memories=st.lists(st.integers(1, 128), min_size=2, max_size=5))
def test_cells_cover_all_layers_fit_and_never_overlap_half_way(layers: int, memories: list[int]) -> None:
    found: list[Span] = []
    for memory in memories:
        mine = cells(layers, lambda first, end, most=memory: end - first <= most)
        assert [span.first for span in mine] == [0, *[span.end for span in mine[:-1]]]
        assert mine[-1].end == layers
        assert all(span.end - span.first <= memory for span in mine)
        found += mine
    for one in found:
        for two in found:
            apart = one.end <= two.first or two.end <= one.first
            assert apart or (one.first <= two.first and two.end <= one.end) or (two.first <= one.first and one.end <= two.end)


def test_ends_that_cost_more_are_cut_smaller() -> None:
    spans = cells(8, lambda first, end: end - first + 2 * (first == 0) + 2 * (end == 8) <= 2)
    assert spans == [Span(1, 2), Span(2, 4), Span(4, 6), Span(6, 7)]


def test_nobody_serves_what_fits_nowhere() -> None:
    assert join(LayerLoads(4), Choices([], []), 1.0, RNG) is None


def test_a_layer_that_nobody_serves_comes_first() -> None:
    loads = LayerLoads(8)
    for span in (Span(0, 2), Span(0, 2), Span(2, 4), Span(4, 6)):
        loads.add(span, 5.0)
    assert join(loads, choices(8, 2), 5.0, RNG) == Span(6, 8)


def test_then_one_that_has_a_single_server_though_it_is_fast() -> None:
    loads = LayerLoads(4)
    loads.add(Span(0, 2), 100.0)
    for _ in range(ENOUGH):
        loads.add(Span(2, 4), 1.0)
    assert join(loads, choices(4, 2), 1.0, RNG) == Span(0, 2)


def test_then_the_slowest() -> None:
    loads = LayerLoads(8)
    for first, rate in ((0, 9.0), (2, 8.0), (4, 5.0), (6, 9.0)):
        loads.add(Span(first, first + 2), rate)
        loads.add(Span(first, first + 2), rate)
    assert join(loads, choices(8, 2), 1.0, RNG) == Span(4, 6)


def test_among_equals_what_lies_here() -> None:
    loads = LayerLoads(8)
    for _ in range(3):
        loads.add(Span(0, 8), 4.0)
    assert {join(loads, choices(8, 2, {Span(2, 4): 1.0}), 1.0, random.Random(seed)) for seed in range(20)} == {Span(2, 4)}


def test_those_who_see_the_same_spread_over_equals() -> None:
    assert len({join(LayerLoads(16), choices(16, 2), 1.0, random.Random(seed)) for seed in range(60)}) == 8


def balanced(mine: Span, layers: int = 8) -> LayerLoads:
    """All others, three servers a span, without this node."""
    others = LayerLoads(layers)
    for first in range(0, layers, 2):
        for _ in range(3 - (first == mine.first)):
            others.add(Span(first, first + 2), 4.0)
    return others


def test_a_balanced_swarm_stays() -> None:
    mine = Span(2, 4)
    assert all(reconsider(balanced(mine), choices(8, 2, {mine: 1.0}), mine, 4.0, random.Random(seed)) is None for seed in range(50))


def test_a_gap_is_filled_by_one_of_many_not_by_all() -> None:
    layers = 64
    others = LayerLoads(layers)
    mine = Span(2, 4)
    for first in range(0, layers, 2):
        for _ in range(60 if first != 8 else 40):
            others.add(Span(first, first + 2), 4.0)
    went = [reconsider(others, choices(layers, 2, {mine: 1.0}), mine, 4.0, random.Random(seed)) for seed in range(400)]
    assert {span for span in went if span is not None} == {Span(8, 10)}
    assert 0.02 < sum(span is not None for span in went) / len(went) < 0.3


def test_nobody_leaves_a_layer_alone_for_speed() -> None:
    others, mine = LayerLoads(4), Span(0, 2)
    others.add(Span(0, 2), 9.0)
    for _ in range(3):
        others.add(Span(2, 4), 0.1)
    assert all(reconsider(others, choices(4, 2, {mine: 1.0}), mine, 9.0, random.Random(seed)) is None for seed in range(50))


def test_but_for_one_that_nobody_serves() -> None:
    others, mine = LayerLoads(4), Span(0, 2)
    others.add(Span(0, 2), 9.0)
    assert reconsider(others, choices(4, 2, {mine: 1.0}), mine, 9.0, RNG) == Span(2, 4)


def test_a_span_that_no_longer_fits_is_chosen_anew() -> None:
    assert reconsider(LayerLoads(8), choices(8, 2), Span(0, 4), 1.0, RNG) in cells(8, lambda first, end: end - first <= 2)


@given(seed=st.integers(0, 99), nodes=st.integers(8, 60))
def test_small_swarms_come_to_rest_with_two_servers_a_layer_where_they_can(seed: int, nodes: int) -> None:
    rng, layers = random.Random(seed), 16
    made = [(rng.choice((4, 4, 8, 16)), 10 ** rng.uniform(-4, -3)) for _ in range(nodes)]
    loads, where = LayerLoads(layers), dict[int, Span]()
    for round_ in range(40):
        moved = 0
        for number, (memory, seconds) in enumerate(made):
            if round_ and number in where:
                loads.remove(where[number], rate_of(where[number], seconds))
                held = {where[number]: 1.0}
                new = reconsider(loads, choices(layers, memory, held), where[number], rate_of(where[number], seconds), rng)
            else:
                new = join(loads, choices(layers, memory), rate_of(Span(0, memory), seconds), rng)
            moved += new is not None
            where[number] = new or where[number]
            loads.add(where[number], rate_of(where[number], seconds))
    assert moved == 0
    assert loads.servers.min() >= ENOUGH
    assert np.isclose(loads.tokens.sum(), sum(1 / seconds for _memory, seconds in made))


def test_looks_have_jitter() -> None:
    looks = [next_look(100.0, random.Random(seed)) - 100.0 for seed in range(200)]
    assert 0.5 * LOOK_EVERY <= min(looks) < 0.6 * LOOK_EVERY < 1.4 * LOOK_EVERY < max(looks) <= 1.5 * LOOK_EVERY
