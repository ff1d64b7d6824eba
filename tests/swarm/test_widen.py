"""A model published by a single node spreads as others come, and then outlives its publisher."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until

pytestmark = pytest.mark.swarm


def test_a_single_nodes_model_spreads_and_outlives_it(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    with Swarm(tmp_path, 1) as swarm:
        publisher = swarm.nodes[0]
        published = publisher.cli("publish", str(model), "--name", "tiny")
        assert (published["survives_losses"], published["peers"]) == (0, 1)
        others = [swarm.add("--join", publisher.ticket) for _ in range(2)]
        publisher.event("widened", 30.0, k=2, n=3)

        def spread() -> bool:
            lines = others[0].cli("status")["models"]
            return bool(lines) and (lines[0]["survives_losses"] or 0) >= 1

        wait_until(spread, 15.0, "one more loss to be survived")
        assert publisher.cli("status")["holdings"][0]["shards"] == published["groups"]
        publisher.kill()
        others[1].cli("fetch", "tiny", str(tmp_path / "fetched"))
    for file in model.iterdir():
        assert (tmp_path / "fetched" / file.name).read_bytes() == file.read_bytes()
