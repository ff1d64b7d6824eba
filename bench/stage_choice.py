"""Ten thousand nodes choose layers of a model of eighty: `python -m bench.stage_choice [quick]`.

The policy that ships beside Petals' rule, in the same virtual time and on the same nodes (tests/simulator/serving.py). "moved" are
bytes loaded by nodes that had loaded before, over the bytes served; a join and a route are timed here, one by one.
"""

from __future__ import annotations

import random
import sys
import time

from runtime import stage_choice
from runtime.layer_path import Roads
from tests.simulator.petals_rule import PetalsRule
from tests.simulator.serving import HOUR, ByStageChoice, Rule, Scene, Serving


def median(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


def timed_joins(swarm: Serving) -> float:
    rule, rng, took = ByStageChoice(), random.Random(1), []
    for node in swarm.up[:500]:
        choices, rate = rule._choices(node, swarm), swarm.rate(node)
        began = time.perf_counter()
        stage_choice.join(swarm.seen, choices, rate, rng)
        took.append(time.perf_counter() - began)
    return median(took)


def timed_routes(swarm: Serving) -> tuple[float, float]:
    """Seconds of a route with the columns made from the records, and with them as they are."""
    roads, whole, path = swarm.roads(random.Random(2)), [], []
    for seed in range(21):
        began = time.perf_counter()
        made = Roads(roads.layers, roads.roads)
        ready = time.perf_counter()
        made.cheapest(random.Random(seed))
        whole.append(time.perf_counter() - began)
        path.append(time.perf_counter() - ready)
    return median(whole), median(path)


def run(name: str, scene: Scene, rule: Rule) -> None:
    swarm, began = Serving(scene, rule), time.process_time()
    swarm.run(HOUR)
    early = swarm.moved_after(0.0)
    swarm.run(scene.hours * HOUR)
    print(
        f"{name}: min/mean {swarm.least():.3f}, fewest servers {swarm.fewest()}; moved in the first hour {100 * early:.2f} %,"
        f" in the {scene.hours - 1:.0f} after it {100 * swarm.moved_after(HOUR):.2f} %; loaded at all {swarm.loaded / 1e12:.1f} TB",
        flush=True,
    )
    if name.startswith("stage_choice, at rest"):
        whole, path = timed_routes(swarm)
        print(
            f"  join {1e6 * timed_joins(swarm):.0f} us; route {1e3 * path:.2f} ms, with columns made anew {1e3 * whole:.2f} ms", flush=True
        )
    loss(swarm, "30 % at random", 0.3, scene.layers)
    loss(swarm, "all that serve only the first quarter", 1.0, scene.layers // 4)
    print(f"  {time.process_time() - began:.0f} s of CPU, {swarm.events.done} events", flush=True)


def loss(swarm: Serving, what: str, part: float, layers: int) -> None:
    draw, when = random.Random(3), swarm.events.now
    lost = swarm.lose(lambda node: draw.random() < part and node.serving is not None and node.serving[0].end <= layers)
    seen = [swarm.least()]
    for minute in range(1, 11):
        swarm.run(when + 60 * minute)
        seen.append(swarm.least())
    curve = " ".join(f"{least:.2f}" for least in seen)
    print(f"  lost {what} ({lost}): min/mean by the minute {curve}; moved {100 * swarm.moved_after(when):.1f} %", flush=True)


def main() -> None:
    nodes = 1_000 if "quick" in sys.argv[1:] else 10_000
    run(f"stage_choice, at rest, {nodes} nodes", Scene(nodes=nodes), ByStageChoice())
    run("stage_choice, 5 % come and go an hour", Scene(nodes=nodes, leave=0.05), ByStageChoice())
    run("Petals' rule, at rest", Scene(nodes=nodes), PetalsRule())
    run("Petals' rule, 5 % come and go an hour", Scene(nodes=nodes, leave=0.05), PetalsRule())


if __name__ == "__main__":
    main()
