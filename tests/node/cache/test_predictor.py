"""The predictor on traces that were made before it, and on habits anyone can see."""

from __future__ import annotations

import pytest

from bench.caches import BUDGET, run
from node.cache.byte_cache import LRU, ByteCache
from node.cache.predictor import AHEAD, DAY, HOUR, LOOK, Predictor
from tests.support.cache_traces import Request, daily, scan, shuffled, total_bytes

GB = 10**9
MIDNIGHT = 20_000 * DAY
"""Of some day."""


def habit(days: int = 6) -> Predictor:
    """ "work" is asked for at nine and ten, "play" at twenty-one, "any" around the clock, each a few times a day."""
    predictor = Predictor()
    for day in range(days):
        for hour in range(24):
            now = MIDNIGHT + day * DAY + hour * HOUR
            if hour in (9, 10):
                predictor.asked("work", GB, now + 600)
                predictor.asked("work", GB, now + 1_800)
            if hour == 21:
                predictor.asked("play", GB, now + 600)
                predictor.asked("play", GB, now + 1_200)
            if hour % 6 == day % 6:
                predictor.asked("any", GB, now + 60)
    return predictor


def test_hours_are_foretold() -> None:
    predictor, today = habit(), MIDNIGHT + 6 * DAY
    assert predictor.expected("work", today + 8.5 * HOUR) > 3 * predictor.expected("play", today + 8.5 * HOUR)
    assert predictor.expected("play", today + 20.5 * HOUR) > 3 * predictor.expected("work", today + 20.5 * HOUR)
    day = [predictor.expected("any", today + hour * HOUR) for hour in range(3, 24)]
    assert max(day) < 4 * min(day)


def test_what_is_wanted_is_loaded_before_its_hour_and_within_the_budget() -> None:
    predictor, morning = habit(), MIDNIGHT + 6 * DAY + 8.5 * HOUR
    assert predictor.wanted({"play": GB}, GB, 10 * GB, morning) == [("work", GB)]
    assert predictor.wanted({"play": GB}, GB, GB - 1, morning) == []
    assert predictor.wanted({"play": GB}, GB, 10 * GB, morning, pinned=["play"]) == []
    assert predictor.wanted({"work": GB}, GB, 10 * GB, morning) == []
    assert predictor.wanted({}, 2 * GB, 10 * GB, morning)[0] == ("work", GB)
    assert predictor.wanted({}, 3 * GB, GB, morning) == [("work", GB)]


def test_once_is_no_habit_and_what_has_just_gone_isnt_fetched_back() -> None:
    predictor = Predictor()
    predictor.asked("once", GB, MIDNIGHT)
    assert predictor.wanted({}, GB, GB, MIDNIGHT + 60) == []
    predictor.asked("once", GB, MIDNIGHT + 120)
    assert predictor.wanted({}, GB, GB, MIDNIGHT + 180) == [("once", GB)]


def test_what_was_asked_for_a_moment_ago_is_kept_rather_than_what_was_yesterday() -> None:
    predictor = Predictor()
    predictor.asked("yesterday", GB, MIDNIGHT)
    predictor.asked("now", GB, MIDNIGHT + DAY)
    held = {"yesterday": GB, "now": GB}
    assert predictor.victim(held, (), MIDNIGHT + DAY + 60) == "yesterday"
    assert predictor.victim(held, {"yesterday"}, MIDNIGHT + DAY + 60) == "now"
    assert predictor.victim(held, held.keys(), MIDNIGHT + DAY + 60) is None


def test_a_clock_set_back_is_no_harm() -> None:
    predictor = habit()
    assert predictor.expected("work", 0.0) > 0
    predictor.asked("work", GB, 0.0)
    assert predictor.expected("work", MIDNIGHT + 7 * DAY) < 1


def points(requests: list[Request]) -> float:
    """Hits of the predictor over LRU's, in points of a hundred."""
    limit, predictor = int(total_bytes(requests) * 0.1), Predictor()
    with_it = run(ByteCache(limit, predictor), requests, predictor)
    assert with_it["ahead_over_asked"] < 0.5
    return 100 * float(with_it["hits"] - run(ByteCache(limit, LRU()), requests)["hits"])


@pytest.mark.parametrize(("make", "least"), [(daily, 5.0), (shuffled, -1.0), (scan, -1.0)], ids=["daily", "shuffled", "scan"])
def test_against_lru_in_the_first_days(make: object, least: float) -> None:
    assert callable(make)
    assert points([request for request in make() if request.at < 8 * DAY]) >= least


@pytest.mark.nightly
@pytest.mark.parametrize(("make", "least"), [(daily, 5.0), (shuffled, -1.0), (scan, -1.0)], ids=["daily", "shuffled", "scan"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_against_lru_over_a_month(make: object, least: float, seed: int) -> None:
    assert callable(make)
    assert points(make(seed)) >= least


def test_looks_and_budgets_are_of_one_piece() -> None:
    """What is loaded ahead in the time looked at fits in what a cache of some gigabytes may move."""
    assert LOOK < AHEAD
    assert BUDGET * LOOK > GB
