"""A node that is drained leaves its shards to others, over the real data plane, and its process ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import CommandFailed, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm.tools import running

pytestmark = pytest.mark.swarm


def test_a_drained_node_hands_over_ends_and_is_not_missed(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    with Swarm(tmp_path, 4) as swarm:
        published = swarm.nodes[0].cli("publish", str(model), "--name", "tiny", "--k", "2", "--n", "3")
        leaver = next(node for node in swarm.nodes[1:] if node.cli("holdings")["holdings"])
        shards = leaver.cli("holdings")["holdings"][0]["shards"]
        pid = leaver.pid
        done = leaver.cli("drain")
        assert (done["handed_over"], done["stopping"]) == (shards, True)
        wait_until(lambda: not running(pid), 15.0, "the drained node's process to end")

        others = [node for node in swarm.nodes if node is not leaver]

        def whole() -> bool:
            groups = others[0].cli("holdings", "tiny")["groups"]
            return all(len(group["shards"]) == 3 for group in groups)

        wait_until(whole, 15.0, "all shards to be announced")
        with pytest.raises(CommandFailed, match="no other home"):
            others[0].cli("drain")
        others[1].cli("fetch", "tiny", str(tmp_path / "fetched"))
        blocked = others[1].cli("block", "tiny")
        assert (blocked["models"], blocked["freed"] > 0) == ([published["model_id"]], True)
        assert others[1].cli("holdings")["holdings"] == []
    for file in model.iterdir():
        assert (tmp_path / "fetched" / file.name).read_bytes() == file.read_bytes()
