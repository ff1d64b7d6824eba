"""Ten thousand nodes choose layers of a model of eighty: `python -m bench.stage_choice [quick]`.

The policy that ships beside Petals' rule, in the same virtual time and on the same nodes (tests/simulator/serving.py). "moved" are
bytes loaded by nodes that had loaded before, over the bytes served; a join and a route are timed here, one by one.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

from bench.bars import Bar
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


def trial(name: str, scene: Scene, rule: Rule) -> dict[str, Any]:
    swarm, began = Serving(scene, rule), time.process_time()
    swarm.run(HOUR)
    early = swarm.moved_after(0.0)
    swarm.run(scene.hours * HOUR)
    found = {
        "min_over_mean": round(swarm.least(), 3), "fewest_servers": swarm.fewest(), "loaded_tb": round(swarm.loaded / 1e12, 1),
        "moved_first_hour": round(100 * early, 2), "moved_after_percent": round(100 * swarm.moved_after(HOUR), 2),
    }  # fmt: skip
    if name == "stage_choice at rest":
        whole, path = timed_routes(swarm)
        found |= {"join_us": round(1e6 * timed_joins(swarm)), "route_ms": round(1e3 * path, 2), "route_anew_ms": round(1e3 * whole, 2)}
    found["after_losing_30"] = loss(swarm, 0.3, scene.layers)
    found["after_losing_the_first_quarter"] = loss(swarm, 1.0, scene.layers // 4)
    print(f"  {name}: {json.dumps(found)}, {time.process_time() - began:.0f} s of CPU, {swarm.events.done} events", flush=True)
    return found


def loss(swarm: Serving, part: float, layers: int) -> list[float]:
    """min/mean by the minute when this part is lost of all that serve none but the first `layers`."""
    draw, when = random.Random(3), swarm.events.now
    swarm.lose(lambda node: draw.random() < part and node.serving is not None and node.serving[0].end <= layers)
    seen = [swarm.least()]
    for minute in range(1, 11):
        swarm.run(when + 60 * minute)
        seen.append(swarm.least())
    return [round(least, 2) for least in seen]


def run(nodes: int = 10_000) -> dict[str, Any]:
    trials: list[tuple[str, float, type[Rule]]] = [
        ("stage_choice at rest", 0.0, ByStageChoice),
        ("stage_choice, 5 % come and go an hour", 0.05, ByStageChoice),
        ("Petals' rule at rest", 0.0, PetalsRule),
        ("Petals' rule, 5 % come and go an hour", 0.05, PetalsRule),
    ]
    found: dict[str, Any] = {"bench": "stage_choice", "nodes": nodes}
    for name, leave, rule in trials:
        found[name] = trial(name, Scene(nodes=nodes, leave=leave) if leave else Scene(nodes=nodes), rule())
    return found


def bars(found: dict[str, Any]) -> list[Bar]:
    ours, theirs, what = found["stage_choice at rest"], found["Petals' rule at rest"], f"{found['nodes']} nodes choose of 80 layers"
    return [
        Bar(f"{what}: a join", "≤ 50 µs", f"{ours['join_us']} µs"),
        Bar(f"{what}: a route", "≤ 5 ms", f"{ours['route_ms']} ms"),
        Bar(f"{what}: min/mean", "≥ 0.75", f"{ours['min_over_mean']} (Petals' rule {theirs['min_over_mean']})"),
        Bar(
            f"{what}: bytes moved after the first hour",
            "≤ 3 %",
            f"{ours['moved_after_percent']} % (Petals' rule {theirs['moved_after_percent']} %)",
        ),
        Bar(f"{what}: min/mean 10 min after losing 30 %", "≥ 0.7", f"{ours['after_losing_30'][-1]}"),
    ]


if __name__ == "__main__":
    print(json.dumps(run(1_000 if "quick" in sys.argv[1:] else 10_000)))
