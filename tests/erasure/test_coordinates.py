from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.coordinates import FARTHEST, Coordinate, coordinate_from, moved
from protocol.errors import BadInput

coordinates = st.lists(st.integers(-60_000_000, 60_000_000), min_size=2, max_size=2).flatmap(
    lambda plane: st.tuples(st.integers(0, 60_000_000), st.integers(0, 1_500_000)).map(lambda rest: coordinate_from([*plane, *rest]))
)


def world(count: int, rng: random.Random) -> tuple[list[tuple[float, float]], list[float]]:
    """Five cities up to 120 ms apart, access links of 2 to 20 ms."""
    cities = [(rng.uniform(0, 0.1), rng.uniform(0, 0.1)) for _ in range(5)]
    return [rng.choice(cities) for _ in range(count)], [rng.uniform(0.002, 0.02) for _ in range(count)]


def test_round_trips_are_foretold_after_some_pings_to_a_few() -> None:
    rng = random.Random(5)
    places, links = world(60, rng)

    def rtt(a: int, b: int) -> float:
        (xa, ya), (xb, yb) = places[a], places[b]
        return (((xa - xb) ** 2 + (ya - yb) ** 2) ** 0.5 + links[a] + links[b]) * rng.uniform(0.95, 1.15)

    at = [Coordinate() for _ in places]
    known = [rng.sample([other for other in range(60) if other != own], 12) for own in range(60)]
    for _ in range(80):
        for own in range(60):
            other = rng.choice(known[own])
            at[own] = moved(at[own], at[other], rtt(own, other), rng)
    strangers = [(a, b) for a in range(60) for b in range(60) if a != b and b not in known[a]]
    wrong = [abs(at[a].distance(at[b]) - rtt(a, b)) / rtt(a, b) for a, b in strangers]
    assert statistics.median(wrong) < 0.15
    assert statistics.quantiles(wrong, n=10)[8] < 0.4


def test_a_liar_drags_a_settled_node_by_less_than_what_it_measures() -> None:
    rng, settled = random.Random(1), Coordinate(0.05, 0.0, 0.01, 0.05)
    far = moved(settled, Coordinate(-50.0, 50.0, 50.0, 0.0), 0.02, rng)
    assert abs(far.x - settled.x) + abs(far.y - settled.y) <= 0.02


@settings(max_examples=200, deadline=None)
@given(coordinates, coordinates, st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 9))
def test_it_stays_in_range_whatever_it_is_told(own: Coordinate, other: Coordinate, rtt: float, seed: int) -> None:
    after = moved(own, other, rtt, random.Random(seed))
    assert coordinate_from(after.to_wire()).distance(other) < 8 * FARTHEST


@pytest.mark.parametrize("wire", [[], [0, 0, 0], [0, 0, -1, 0], [61_000_000, 0, 0, 0], [0, 0, 0, 1_500_001], [0, 0, 61_000_000, 0]])
def test_nonsense_is_refused(wire: list[int]) -> None:
    with pytest.raises(BadInput):
        coordinate_from(wire)
