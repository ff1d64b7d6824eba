"""Ten real nodes, three killed for good: what falls below r has n shards again within five minutes, and how many bytes that took."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from erasure.durability import enough_durable
from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = [pytest.mark.swarm, pytest.mark.nightly]
K, N = 2, 6
R = enough_durable(K, N)
WITHIN = 300.0
GONE_AFTER = 30.0


def distinct(group: dict[str, Any], living: set[str]) -> int:
    return sum(any(peer in living for peer in peers) for peers in group["shards"].values())


def worst_three(groups: list[dict[str, Any]], candidates: list[str], everybody: set[str]) -> set[str]:
    """The three nodes whose loss brings most groups below r."""

    def below(gone: tuple[str, ...]) -> int:
        return sum(distinct(group, everybody - set(gone)) < R for group in groups)

    return set(max(itertools.combinations(candidates, 3), key=below))


def repaired(nodes: list[Node]) -> list[dict[str, Any]]:
    """The `repaired` events of all logs."""
    lines = [line for node in nodes for line in node.log.read_text(errors="replace").splitlines() if '"repaired"' in line]
    return [json.loads(line) for line in lines]


def test_three_of_ten_killed(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", layers=8)
    with Swarm(tmp_path, 10, "--gone-after", f"{GONE_AFTER:g}s") as swarm:
        publisher = swarm.nodes[0]
        told = publisher.cli("publish", str(model), "--name", "tiny", "--k", str(K), "--n", str(N))
        everybody = {node.peer_id for node in swarm.nodes}
        groups = tools.holders_of(publisher, told["model_id"])
        gone = worst_three(groups, [node.peer_id for node in swarm.nodes[1:]], everybody)
        living = everybody - gone
        below = [group["group"] for group in groups if distinct(group, living) < R]
        assert below
        for node in swarm.nodes:
            if node.peer_id in gone:
                node.kill()
        began = time.monotonic()

        def whole() -> bool:
            found = {group["group"]: distinct(group, living) for group in tools.holders_of(publisher, told["model_id"])}
            return all(found[name] == N for name in below)

        wait_until(whole, GONE_AFTER + WITHIN, f"{len(below)} groups to have {N} shards again")
        took = time.monotonic() - began
        events = repaired(swarm.living())
        moved = {name: sum(int(event[name]) for event in events) for name in ("read", "written")}
        tools.report(
            "repair",
            f"{len(below)} of {len(groups)} groups fell below {R} of {N} shards; all had {N} again {took:.0f} s after the kill; "
            f"{len(events)} repairs read {moved['read']} and wrote {moved['written']} bytes",
        )
        after = tools.holders_of(publisher, told["model_id"])
        for group in after:
            holders = [peer for peers in group["shards"].values() for peer in peers if peer in living]
            assert len(holders) == len(set(holders))
        survivor = next(node for node in swarm.living() if node is not publisher)
        publisher.kill()
        survivor.cli("fetch", "tiny", str(tmp_path / "fetched"))
    for file in model.iterdir():
        assert (tmp_path / "fetched" / file.name).read_bytes() == file.read_bytes()
