"""The bars of a swarm that heals itself: small here, at full size by `make nightly`."""

from __future__ import annotations

import math
import time

import pytest

from erasure.forecast import Churn as Leaving
from erasure.forecast import repair_suffices
from tests.simulator.results import Result
from tests.simulator.scenario import DAY, HOUR, Churn, Scenario
from tests.simulator.swarm import SimSwarm, simulate


def small(seed: int = 0, **changes: object) -> Scenario:
    fields: dict[str, object] = {"nodes": 50, "groups": 10, "hours": 8.0, "seed": seed, "reads": 300.0}
    return Scenario(**(fields | changes))  # type: ignore[arg-type]


def suffices(scenario: Scenario, hours: float = 24.0) -> bool:
    k, n = scenario.code()
    leaving = Leaving(-math.log(1 - scenario.churn.leave) / HOUR, scenario.nodes, scenario.cap)
    return repair_suffices(k, n, -(-scenario.group_bytes // k), scenario.groups, leaving, hours * HOUR).enough


def rates(result: Result) -> tuple[int, float]:
    return len(result.lost), result.reads.share()


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    scenario = small(churn=Churn(leave=0.2, reboots=3), hours=4.0)
    one, two = simulate(scenario), simulate(scenario)
    assert (one.samples, one.traffic, one.events) == (two.samples, two.traffic, two.events)
    assert simulate(small(seed=1, churn=Churn(leave=0.2, reboots=3), hours=4.0)).samples != one.samples


def test_a_quiet_swarm_moves_nothing() -> None:
    result = simulate(small(churn=Churn()))
    assert (result.traffic.total(), result.repairs, rates(result)) == (0, 0, (0, 1.0))
    assert result.reads.asked > 2000
    assert 0.1 < result.reads.quantile(0.5) < result.reads.quantile(0.99) < 20


def test_reboots_and_a_cut_that_heals_move_nothing() -> None:
    result = simulate(small(churn=Churn(reboots=8, cuts=((HOUR, 600.0, 0.5), (5 * HOUR, 600.0, 0.3)))))
    assert (result.traffic.total(), len(result.lost), result.alarmed) == (0, 0, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tenth_leaving_every_hour_loses_nothing_and_repairs_cheaply(seed: int) -> None:
    scenario = small(seed, nodes=60, hours=12.0, churn=Churn(leave=0.1, reboots=1, cuts=((3 * HOUR, 600.0, 0.5),)))
    assert suffices(scenario)
    result = simulate(scenario)
    assert result.lost == []
    assert result.repairs > 10
    assert result.ratio() <= 1.5
    assert result.doubled <= result.repairs / 10


def test_without_repair_the_same_swarm_would_lose_groups() -> None:
    scenario = small(nodes=60, hours=14.0, churn=Churn(leave=0.1), cap=1.0)
    assert simulate(scenario).lost


def test_too_little_bandwidth_is_told_before_a_group_is_lost() -> None:
    scenario = small(nodes=60, hours=5.0, cap=1e4, churn=Churn(leave=0.3))
    assert not suffices(scenario)
    result = simulate(scenario)
    assert result.lost
    assert result.late == []


def test_a_subnet_lost_at_once_is_survived() -> None:
    result = simulate(small(nodes=80, churn=Churn(leave=0.02, subnets_lost=(HOUR, 2 * HOUR))))
    assert result.lost == []


def test_leaving_out_those_who_have_nothing_to_do_changes_nothing() -> None:
    """All nodes plan for all of their groups each minute, or only those for whom a group may be below r: the same repairs."""
    churn = Churn(leave=0.25, reboots=4)
    few = simulate(small(hours=3.0, nodes=40, groups=5, churn=churn))
    all_ = simulate(small(hours=3.0, nodes=40, groups=5, churn=churn, everybody_plans=True))
    assert few.repairs > 3
    assert all_.plans > 2 * few.plans
    assert abs(all_.repairs - few.repairs) <= 2
    assert all_.traffic.total() == pytest.approx(few.traffic.total(), rel=0.2)


def test_nightly_shutdowns_are_learnt() -> None:
    """Once a node's nights are known its absence is no reason to repair."""
    scenario = small(hours=96.0, nodes=40, groups=4, reads=0.0, churn=Churn(nightly=0.4), warm=2 * DAY)
    swarm = SimSwarm(scenario)
    result = swarm.run()
    assert result.lost == []
    assert result.traffic.total() <= 2 * 4 * scenario.group_bytes


# The bars at full size


def full(seed: int, leave: float, **changes: object) -> Scenario:
    fields: dict[str, object] = {"nodes": 100, "groups": 25, "hours": 24.0, "seed": seed, "reads": 250.0}
    return Scenario(**(fields | {"churn": Churn(leave=leave, reboots=1)} | changes))  # type: ignore[arg-type]


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_full_size_a_tenth_an_hour(seed: int) -> None:
    result = simulate(full(seed, 0.1))
    assert result.lost == []
    assert result.reads.share() >= 0.999
    assert result.ratio() <= 1.5


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_full_size_repair_bytes_with_reboots_and_a_cut(seed: int) -> None:
    result = simulate(full(seed, 0.1, churn=Churn(leave=0.1, reboots=2, cuts=((6 * HOUR, 600.0, 0.5),))))
    assert result.lost == []
    assert result.ratio() <= 1.5


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_full_size_three_tenths_an_hour_while_bandwidth_suffices(seed: int) -> None:
    scenario = full(seed, 0.3)
    assert suffices(scenario)
    result = simulate(scenario)
    assert result.lost == []


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_full_size_three_tenths_an_hour_with_too_little_bandwidth(seed: int) -> None:
    scenario = full(seed, 0.3, cap=1.5e4, hours=8.0)
    assert not suffices(scenario)
    result = simulate(scenario)
    assert result.lost
    assert result.late == []


@pytest.mark.nightly
def test_full_size_an_hour_of_ten_thousand_nodes_in_two_minutes() -> None:
    churn = Churn(leave=0.3, reboots=2, sessions=0.2, nightly=0.2, subnets_lost=(1800.0,), cuts=((1200.0, 600.0, 0.3),))
    began = time.process_time()
    result = simulate(Scenario(nodes=10_000, groups=2_000, hours=1.0, reads=10_000.0, churn=churn))
    assert time.process_time() - began <= 120
    assert result.lost == []
    assert result.repairs > 1_000
