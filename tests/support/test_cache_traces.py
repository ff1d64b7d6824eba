from __future__ import annotations

import statistics
from collections import Counter

from tests.support.cache_traces import DAY, DAYS, Request, daily, scan, shuffled


def hours_of(requests: list[Request], model: str) -> list[int]:
    counted = Counter(int(request.at % DAY // 3_600) for request in requests if request.model == model)
    return [counted[hour] for hour in range(24)]


def test_the_same_seed_gives_the_same_trace() -> None:
    assert daily(3) == daily(3)
    assert daily(3) != daily(4)
    assert scan(3) == scan(3)


def test_popularity_falls_as_zipf_says_and_hours_matter_only_in_the_first() -> None:
    requests, mixed = daily(), shuffled()
    assert len(requests) == 1_000 * DAYS
    ranks = [count for _, count in Counter(request.model for request in requests).most_common()]
    assert 6 < ranks[0] / ranks[9] < 10
    assert Counter(request.model for request in mixed) == Counter(request.model for request in requests)
    assert max(hours_of(requests, "model 0")) > 5 * max(1, min(hours_of(requests, "model 0")))
    spread = [hours / max(1, all_hours) for hours, all_hours in zip(hours_of(mixed, "model 0"), by_hour(mixed), strict=True)]
    assert statistics.pstdev(spread) / statistics.mean(spread) < 0.25


def by_hour(requests: list[Request]) -> list[int]:
    counted = Counter(int(request.at % DAY // 3_600) for request in requests)
    return [counted[hour] for hour in range(24)]


def test_a_scan_asks_for_most_of_its_models_once() -> None:
    counted = Counter(request.model for request in scan())
    assert sum(count == 1 for name, count in counted.items() if name.startswith("once")) == 4_500
    assert scan() == sorted(scan(), key=lambda request: request.at)
