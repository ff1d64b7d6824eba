"""What a route is expected to do: network time, tokens a second, and the budget that refuses."""

from __future__ import annotations

import pytest

from protocol.messages import StageSpec
from runtime.expectation import ASSUMED, OverBudget, Paces, check_budget, expect, network_seconds

ROUTE = [StageSpec("me", 0, 10), StageSpec("a", 10, 20), StageSpec("b", 20, 30)]
RTT = {"me": 0.0, "a": 0.020, "b": 0.060}


def size(first: int, end: int) -> int:
    return (end - first) * 1_000_000


def test_each_hop_of_a_token_counts_once() -> None:
    assert network_seconds(ROUTE, RTT) == pytest.approx(0.010 + 0.040 + 0.030)
    assert network_seconds([StageSpec("a", 0, 30)], RTT) == 0.0
    assert network_seconds([StageSpec("me", 0, 1), StageSpec("a", 1, 29), StageSpec("me", 29, 30)], RTT) == pytest.approx(0.020)


def test_figures_say_whose_they_are() -> None:
    paces = Paces("me")
    assert [part.basis for part in expect(ROUTE, size, RTT, paces, 100).stages] == ["assumed"] * 3
    paces.note("me", 10_000_000, 0.010, 0.001)
    paces.note("a", 10_000_000, 0.020, 0.002)
    expected = expect(ROUTE, size, RTT, paces, 100)
    assert [part.basis for part in expected.stages] == ["measured here", "measured there", "measured here"]
    assert [part.seconds_per_token for part in expected.stages] == pytest.approx([0.010, 0.020, 0.010])
    assert expected.per_token == pytest.approx(0.040 + 0.080)
    assert expected.first_token == pytest.approx(100 * 0.004 + 0.080 + 0.030)


def test_without_any_measurement_it_is_an_assumption() -> None:
    assert expect(ROUTE[:1], size, RTT, Paces("me"), 1).stages[0].seconds_per_token == pytest.approx(1e7 / ASSUMED)


@pytest.mark.parametrize(
    ("decode", "prompt", "weights"), [(0.0, 0.1, 5), (-1.0, 0.1, 5), (float("nan"), 0.1, 5), (1e9, 0.1, 5), (0.1, 0.1, 0)]
)
def test_figures_that_cant_be_are_left_out(decode: float, prompt: float, weights: int) -> None:
    paces = Paces("me")
    paces.note("a", weights, decode, prompt)
    assert paces.of("a")[1] == "assumed"


def test_the_budget_refuses_unless_forced() -> None:
    with pytest.raises(OverBudget, match="80 ms per token on the network, 50 ms") as caught:
        check_budget(ROUTE, RTT, 0.05, forced=False)
    assert caught.value.status == 503
    assert "--force" in (caught.value.hint or "")
    check_budget(ROUTE, RTT, 0.05, forced=True)
    check_budget(ROUTE, RTT, 0.081, forced=False)
