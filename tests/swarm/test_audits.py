"""Five real processes, two of which lie about what they hold: the others name them, and count only what was shown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = pytest.mark.swarm

K, HONEST = 2, 3
NAMED_WITHIN = 60.0


def survives(node: Node) -> int | None:
    lines = node.cli("status")["models"]
    return lines[0]["survives_losses"] if lines else None


def named(node: Node) -> dict[str, str]:
    return {str(line["peer_id"]): str(line["verdict"]) for line in node.cli("status")["uncounted"]}


def test_liars_are_named_and_do_not_count(tmp_path: Path) -> None:
    with Swarm(tmp_path, HONEST) as swarm:
        liars: dict[str, Node] = {}
        for lie in ("noise", "missing"):
            node = Node(tmp_path / lie, "--join", swarm.nodes[0].ticket, module="tests.swarm.liar", env={"LIE": lie})
            swarm.nodes.append(node)
            liars[lie] = node.start()
        swarm.wait_met()
        told: dict[str, Any] = swarm.nodes[0].cli("publish", str(tiny_llama(tmp_path / "model")), "--name", "tiny", "--k", "2", "--n", "5")
        assert told["survives_losses"] == HONEST + len(liars) - K
        began, other = time.monotonic(), swarm.nodes[1]
        wanted = {liars["noise"].peer_id: "wrong", liars["missing"].peer_id: "missing"}
        wait_until(lambda: named(other) == wanted and survives(other) == HONEST - K, NAMED_WITHIN, "both liars to be named")
        tools.report("publish to both liars named by another node", f"{time.monotonic() - began:.1f} s")
        assert {line["peer_id"] for line in other.cli("status")["blamed"]} == {liars["noise"].peer_id}
        counted = tools.metric(other, "mf_audits_total")
        assert counted['{verdict="passed"}'] >= 2 * told["groups"]
        assert counted['{verdict="missing"}'] >= told["groups"]
        assert counted['{verdict="wrong"}'] >= 3
        other.event("audit_not_passed", 1.0, peer=liars["noise"].peer_id, verdict="wrong")
        for node in swarm.nodes[:HONEST]:
            assert "Traceback" not in node.log.read_text()
