from __future__ import annotations

import math
import random

import pytest

from erasure.forecast import Churn, chance_below_k, repair_suffices, time_to_loss

RATE = -math.log(0.9) / 3600
"""A tenth an hour."""


def test_the_chance_is_what_drawing_lots_gives() -> None:
    rng = random.Random(1)
    below = 0
    for _ in range(4000):
        below += sum(rng.random() < 0.9**3 for _ in range(12)) < 8
    assert chance_below_k(8, 12, RATE, 3 * 3600) == pytest.approx(below / 4000, abs=0.03)
    assert chance_below_k(8, 7, RATE, 0.0) == 1.0
    assert chance_below_k(8, 8, RATE, 0.0) == 0.0


def test_time_to_loss_is_the_sum_of_waits() -> None:
    assert time_to_loss(1, 1, 0.1) == pytest.approx(10.0)
    assert time_to_loss(1, 2, 0.1) == pytest.approx(15.0)
    assert time_to_loss(5, 4, 0.1) == 0.0


def test_a_bandwidth_suffices_or_not_by_the_stated_formula() -> None:
    k, n, shard = 20, 49, 5_000_000
    wide = repair_suffices(k, n, shard, 50, Churn(RATE, 100, 1e6))
    r = 20 + 15
    m = n - r + 1
    assert wide.enough
    assert wide.needed == pytest.approx(RATE * n * 50 * shard * (k + m) / m)
    assert not repair_suffices(k, n, shard, 50, Churn(RATE, 100, 1e4)).enough
    assert "MB/s" in wide.words


def test_more_churn_more_groups_and_less_bandwidth_never_help() -> None:
    base = repair_suffices(4, 10, 1_000_000, 20, Churn(RATE, 50, 1e5))
    for worse in (
        repair_suffices(4, 10, 1_000_000, 20, Churn(3 * RATE, 50, 1e5)),
        repair_suffices(4, 10, 1_000_000, 90, Churn(RATE, 50, 1e5)),
        repair_suffices(4, 10, 1_000_000, 20, Churn(RATE, 50, 3e4)),
    ):
        assert worse.lost >= base.lost
        assert worse.needed / worse.there >= base.needed / base.there


def test_a_queue_that_never_ends_loses_everything() -> None:
    verdict = repair_suffices(4, 10, 1_000_000, 10_000, Churn(RATE, 10, 1e3))
    assert (verdict.enough, verdict.lost, verdict.takes) == (False, 1.0, math.inf)
