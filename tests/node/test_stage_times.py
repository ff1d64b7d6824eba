"""Where a reply's time went: sums of what stages told, what this node saw beside it, and what nobody can know stays unknown."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.gateway import StageTime
from node.stage_times import RouteTimes
from protocol.limits import MAX_TIMED_STAGES
from protocol.messages import StageSpec
from protocol.step_times import UNTOLD, with_own

ROUTE = [StageSpec("a", 0, 3), StageSpec("b", 3, 6)]


def ms(*milliseconds: int) -> list[int]:
    return [1_000 * one for one in milliseconds]


def test_each_stage_adds_its_own_behind_those_before() -> None:
    first = with_own(None, 0, 0.002, 0.0005)
    assert first == [2_000, 500]
    assert with_own(first, 1, 0.003, 0.0) == [2_000, 500, 3_000, 0]
    assert with_own([1, 2, 3, 4, 5, 6], 1, 0.0, 0.0) == [1, 2, 0, 0]  # a stage before this one can't speak for it


def test_one_that_was_told_nothing_says_so_of_those_before() -> None:
    assert with_own(None, 2, 0.001, 0.0) == [UNTOLD, UNTOLD, UNTOLD, UNTOLD, 1_000, 0]


def test_stages_beyond_the_bound_add_nothing() -> None:
    full = [7] * 2 * MAX_TIMED_STAGES
    assert with_own(full, MAX_TIMED_STAGES, 1.0, 1.0) == full
    assert with_own(None, MAX_TIMED_STAGES, 1.0, 1.0) is None


def run(seen: list[tuple[str, float]] | None = None) -> RouteTimes:
    """A prompt of two cuts, then three tokens."""
    times = RouteTimes(lambda part, seconds: (seen if seen is not None else []).append((part, seconds)))
    times.begin(10.0)
    times.cut(ROUTE, ms(100, 30, 120, 10))
    times.token(ROUTE, ms(50, 5, 60, 5), 10.5)
    times.token(ROUTE, ms(10, 1, 12, 1), 10.53)
    times.token(ROUTE, ms(10, 0, 12, 0), 10.56)
    return times


def test_queue_prefill_decode_and_network() -> None:
    timings = run().timings()
    assert timings == pytest.approx({"queue": 0.04, "prefill": 0.46, "decode": 0.06, "network": 0.014})


def test_each_stages_own_time() -> None:
    one, two = run().stages(ROUTE)
    assert (one.peer, one.first, one.end) == ("a", 0, 3)
    assert (one.prefill, one.decode, one.wait) == pytest.approx((0.15, 0.02, 0.036))
    assert (two.prefill, two.decode, two.wait) == pytest.approx((0.18, 0.024, 0.016))


def test_steps_are_observed_part_by_part() -> None:
    seen: list[tuple[str, float]] = []
    run(seen)
    assert [part for part, _ in seen].count("compute") == [part for part, _ in seen].count("wait") == 8
    assert [seconds for part, seconds in seen if part == "network"] == pytest.approx([0.003, 0.004])  # each of two hops


def test_a_stage_that_tells_nothing_is_unknown_and_so_is_the_network() -> None:
    times = RouteTimes()
    times.begin(0.0)
    times.token(ROUTE, ms(5, 0), 0.1)
    times.token(ROUTE, [UNTOLD, UNTOLD, 1_000, 0], 0.2)
    assert times.timings() == pytest.approx({"queue": 0.0, "prefill": 0.1, "decode": 0.1})
    assert times.stages(ROUTE) == [StageTime("a", 0, 3), StageTime("b", 3, 6)]


def test_more_than_all_the_time_there_was_is_no_figure() -> None:
    times = RouteTimes()
    times.begin(0.0)
    times.token(ROUTE, ms(5, 0, 5, 0), 0.1)
    times.token(ROUTE, ms(5, 0, 9_000, 0), 0.2)
    assert "network" not in times.timings()
    assert all(one.decode is None for one in times.stages(ROUTE))


def test_a_replaced_stages_time_is_not_its_successors() -> None:
    times, later = run(), [ROUTE[0], StageSpec("c", 3, 6)]
    times.begin(11.0)
    times.token(later, ms(20, 0, 40, 0), 11.1)
    _one, two = times.stages(later)
    assert (two.peer, two.prefill, two.decode) == ("c", pytest.approx(0.04), 0.0)


def test_a_route_that_never_gave_a_token_has_no_figures() -> None:
    assert RouteTimes().timings() == {}
    assert RouteTimes().stages(ROUTE) == [StageTime("a", 0, 3), StageTime("b", 3, 6)]


@given(st.lists(st.lists(st.integers(-1, (1 << 31) - 1), max_size=6), min_size=1, max_size=8))
@example([[0, 0, 0, 10_001], [272_001, 0]])  # a wait that is told to be longer than the prompt took
def test_whatever_is_told_nothing_is_negative_or_too_much(told: list[list[int]]) -> None:
    times = RouteTimes()
    times.begin(0.0)
    for at, spent in enumerate(told):
        times.token(ROUTE, spent, 0.01 * (at + 1))
    assert all(seconds >= 0 for seconds in times.timings().values())
    assert all(one.decode is None or one.decode <= 1.1 * 0.01 * len(told) + 0.25 for one in times.stages(ROUTE))
