"""`python -m bench.placement`: what a decision costs, how even the places are, and what moves when nodes join."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from typing import Any

from erasure.placement import Candidate, Placement
from erasure.rebalance import GroupHeld, moves

N, K = 20, 10


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


def evenness(count: int, groups: int, mixed: bool) -> dict[str, Any]:
    """Bytes each node holds over its fair share, and what ten that join take over."""
    nodes = candidates(count, mixed=mixed)
    placement = Placement(nodes)
    held = [
        GroupHeld(name, K, N, 1, dict(placement.choose(name, N, k=K))) for name in (index.to_bytes(32, "big") for index in range(groups))
    ]
    used = Counter(peer for group in held for peer in group.held.values())
    fair = groups * N / sum(map(placement.worth, (node.peer for node in nodes)))
    filled = [used[node.peer] / (fair * placement.worth(node.peer)) for node in nodes]
    newcomers = candidates(10, seed=2, mixed=mixed)
    for node in newcomers:
        placement.join(node)
    joined = [node.peer for node in newcomers]
    moved = sum(move.shard_bytes for move in moves(placement, held, joined))
    share = sum(map(placement.worth, joined)) / sum(placement.worth(node.peer) for node in (*nodes, *newcomers))
    return {
        "nodes": count,
        "mixed": mixed,
        "shards_a_node": groups * N / count,
        "max_over_fair": round(max(filled), 3),
        "min_over_fair": round(min(filled), 3),
        "moved_over_least": round(moved / (share * groups * N), 3),
    }


def main() -> None:
    for count in (100, 1_000, 10_000):
        for mixed in (False, True):
            print(json.dumps(decision(count, mixed)), flush=True)
    # Nodes of little worth hold few shards, so that chance shows more: with four times the groups it shows half as much.
    for groups, mixed in ((7_500, False), (7_500, True), (30_000, True)):
        print(json.dumps(evenness(1_000, groups, mixed)), flush=True)


if __name__ == "__main__":
    main()
