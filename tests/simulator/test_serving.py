"""Who serves what, in virtual time: balance, rest, and recovery; small here, all of it in the nightly run."""

from __future__ import annotations

import random
import time

import pytest

from runtime import stage_choice
from tests.simulator.petals_rule import PetalsRule
from tests.simulator.serving import HOUR, ByStageChoice, Scene, Serving


def recovered(swarm: Serving, seconds: float = 600.0) -> float:
    swarm.run(swarm.events.now + seconds)
    return swarm.least()


def lose_some(swarm: Serving, part: float) -> int:
    draw = random.Random(3)
    return swarm.lose(lambda _node: draw.random() < part)


def servers_of_the_first(swarm: Serving, layers: int) -> int:
    return swarm.lose(lambda node: node.serving is not None and node.serving[0].end <= layers)


def test_a_small_swarm_is_balanced_rests_and_recovers() -> None:
    swarm = Serving(Scene(nodes=600, hours=2.0))
    swarm.run(HOUR)
    assert swarm.least() >= 0.75
    assert swarm.fewest() >= 2
    swarm.run(2 * HOUR)
    assert swarm.least() >= 0.75
    assert swarm.moved_after(HOUR) <= 0.03
    assert 130 <= lose_some(swarm, 0.3) <= 230
    assert recovered(swarm) >= 0.7


def test_all_servers_of_a_few_layers_gone_at_once() -> None:
    swarm = Serving(Scene(nodes=400, layers=32, lines=(5e7, 2e8)))
    swarm.run(HOUR)
    servers_of_the_first(swarm, 8)
    assert swarm.least() < 0.6
    assert recovered(swarm) >= 0.7
    assert swarm.fewest() >= 2


def test_come_and_go() -> None:
    swarm = Serving(Scene(nodes=400, leave=0.1))
    swarm.run(HOUR)
    swarm.run(3 * HOUR)
    assert swarm.least() >= 0.7
    assert swarm.moved_after(HOUR) <= 0.03


def test_no_more_than_a_few_move_though_all_measure_badly() -> None:
    swarm = Serving(Scene(nodes=400, noise=0.15))
    swarm.run(3 * HOUR)
    assert swarm.moved_after(HOUR) <= 0.03


@pytest.mark.nightly
def test_ten_thousand_nodes() -> None:
    swarm = Serving(Scene())
    swarm.run(HOUR)
    swarm.run(3 * HOUR)
    least, moved, fewest = swarm.least(), swarm.moved_after(HOUR), swarm.fewest()
    joining = _join_seconds(swarm)
    roads = swarm.roads(random.Random(2))
    roads.cheapest(random.Random(0))
    began = time.process_time()
    for seed in range(20):
        assert roads.cheapest(random.Random(seed)) is not None
    routing = (time.process_time() - began) / 20
    lost = lose_some(swarm, 0.3)
    after = recovered(swarm)
    print(f"min/mean {least:.3f}, fewest servers {fewest}, moved {100 * moved:.2f} %")
    print(f"join {1e6 * joining:.0f} us, route {1e3 * routing:.2f} ms")
    print(f"ten minutes after losing {lost}: {after:.3f}")
    assert least >= 0.75
    assert moved <= 0.03
    assert after >= 0.7


def _join_seconds(swarm: Serving) -> float:
    rule, rng = ByStageChoice(), random.Random(1)
    nodes = [node for node in swarm.up if node.span is not None][:200]
    chosen = [rule._choices(node, swarm) for node in nodes]
    began = time.process_time()
    for node, choices in zip(nodes, chosen, strict=True):
        stage_choice.join(swarm.seen, choices, swarm.rate(node), rng)
    return (time.process_time() - began) / len(nodes)


def test_the_rule_of_petals_moves_more_after_a_loss() -> None:
    moved = []
    for rule in (None, PetalsRule()):
        swarm = Serving(Scene(nodes=300), rule)
        swarm.run(HOUR)
        lose_some(swarm, 0.3)
        recovered(swarm)
        moved.append(swarm.moved_after(HOUR))
    assert moved[0] < moved[1]
