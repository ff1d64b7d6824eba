"""`python -m bench.placement`: what a decision costs, how even the places are, and what moves when nodes join."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from erasure.placement import Candidate, Placement
from erasure.rebalance import GroupHeld, moves

N, K = 20, 10
GROUPS_A_MODEL = 30
FILLED = 0.5


def candidates(count: int, seed: int = 1, mixed: bool = False) -> list[Candidate]:
    """Each in a domain of its own, equal or with mixed figures; eight regions."""
    rng = random.Random(seed)
    return [
        Candidate(
            f"12D3KooW{seed}x{index}",
            f"domain {seed} {index}",
            weight=rng.choice((1.0, 2.0, 4.0)) if mixed else 1.0,
            reliability=rng.uniform(0.5, 1.0) if mixed else None,
            speed=rng.uniform(1e6, 1e8) if mixed else None,
            distance=rng.uniform(0.005, 0.3) if mixed else None,
            region=f"region {index % 8}" if mixed else None,
        )
        for index in range(count)
    ]


def decision(count: int, mixed: bool, decisions: int = 200) -> dict[str, Any]:
    nodes = candidates(count, mixed=mixed)
    started = time.perf_counter()
    placement = Placement(nodes)
    placement.choose(b"warm", N, k=K)
    built = time.perf_counter() - started
    spent = []
    for index in range(decisions):
        started = time.perf_counter()
        placement.choose(index.to_bytes(32, "big"), N, k=K)
        spent.append(time.perf_counter() - started)
    spent.sort()
    return {
        "nodes": count,
        "mixed": mixed,
        "build_ms": round(1e3 * built, 1),
        "decision_ms": round(1e3 * spent[len(spent) // 2], 3),
        "decision_p95_ms": round(1e3 * spent[int(len(spent) * 0.95)], 3),
    }


def fill(placement: Placement, nodes: list[Candidate], groups: int) -> tuple[list[GroupHeld], Counter[str]]:
    """Publishes model after model of GROUPS_A_MODEL groups, until half of all that is lent is used; between two of them every node
    tells how much of its room is left."""
    lent = groups * N / FILLED / sum(node.weight for node in nodes)
    held: list[GroupHeld] = []
    used: Counter[str] = Counter()
    for first in range(0, groups, GROUPS_A_MODEL):
        for node in nodes:
            placement.join(replace(node, room=round(1 - used[node.peer] / (node.weight * lent), 3)))
        model = first.to_bytes(16, "big")
        for index in range(first, min(groups, first + GROUPS_A_MODEL)):
            name = index.to_bytes(32, "big")
            places = dict(placement.choose(name, N, k=K, model=model))
            held.append(GroupHeld(name, K, N, 1, places, model))
            used.update(places.values())
    return held, used


def evenness(count: int, groups: int, mixed: bool, seed: int) -> dict[str, Any]:
    """Bytes each node holds over its fair share, and what ten that join take over of the least they must.

    The fair share is in proportion to worth with everybody's room taken as equal: bytes lent times reliability, speed and distance.
    """
    nodes = candidates(count, seed, mixed)
    placement = Placement(nodes)
    worth = {node.peer: placement.worth(node.peer) for node in nodes}
    held, used = fill(placement, nodes, groups)
    fair = groups * N / sum(worth.values())
    filled = [used[peer] / (fair * worth[peer]) for peer in worth]
    newcomers = [replace(node, room=1.0) for node in candidates(10, seed + 100, mixed)]
    for node in newcomers:
        placement.join(node)
    joined = [node.peer for node in newcomers]
    moved = sum(move.shard_bytes for move in moves(placement, held, joined))
    share = sum(map(placement.worth, joined)) / sum(placement.worth(node.peer) for node in (*nodes, *newcomers))
    return {
        "nodes": count,
        "mixed": mixed,
        "seed": seed,
        "shards_a_node": groups * N / count,
        "max_over_fair": round(max(filled), 3),
        "min_over_fair": round(min(filled), 3),
        "moved_over_least": round(moved / (share * groups * N), 3),
    }


def main() -> None:
    for count in (100, 1_000, 10_000):
        for mixed in (False, True):
            print(json.dumps(decision(count, mixed)), flush=True)
    for mixed in (False, True):
        for seed in (1, 2, 3):
            print(json.dumps(evenness(1_000, 7_500, mixed, seed)), flush=True)


if __name__ == "__main__":
    main()
