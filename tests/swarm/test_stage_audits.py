"""Real nodes serve layers, routes go over what is loaded, and a stage that computes nothing is found and named; nobody else ever is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = [pytest.mark.swarm, pytest.mark.nightly]

EAGER = "tests.swarm.eager"
HONEST, TOKENS = 4, 60
PROMPT = "abc defg hij klm nopq rst uvw xyz abc defg hij klm"
SERVED_WITHIN, FOUND_WITHIN = 300.0, 300.0


def test_layers_are_served_and_a_stage_that_skips_them_is_named(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", layers=8)
    memory = tools.memory_for_stages(model, 2, 2_304, "bf16")
    with Swarm(tmp_path, 1, "--max-memory", memory) as swarm:
        asker = swarm.nodes[0]

        def join(name: str, lie: str) -> Node:
            options = ("--lend", "both", "--max-memory", memory, "--join", asker.ticket)
            swarm.nodes.append(Node(tmp_path / name, *options, module=EAGER, env={"LIE": lie, "MF_SERVE_LAYERS": "true"}))
            return swarm.nodes[-1].launch()

        asker.stop()
        swarm.nodes[0] = asker = Node(asker.data_dir, "--max-memory", memory, module=EAGER).start()
        honest = [join(f"honest{number}", "") for number in range(HONEST)]
        for node in honest:
            node.wait_ready()
        swarm.wait_met()
        told = asker.cli("publish", str(model), "--name", "tiny", "--k", "2", "--n", "5", timeout=240.0)
        began = time.monotonic()
        for node in honest:
            node.event("layers_served", SERVED_WITHIN)
        tools.report("all serve layers", f"{time.monotonic() - began:.1f} s after publishing")

        def over_loaded() -> bool:
            reply = tools.ask(asker, told["name"], PROMPT, TOKENS, precision="bf16")
            assert reply.error is None
            return len(reply.route) == 4 and not any(stage["here"] for stage in reply.route)

        wait_until(over_loaded, FOUND_WITHIN, "a route over loaded stages alone")

        def agreed() -> bool:
            tools.ask(asker, told["name"], PROMPT, TOKENS, precision="bf16")
            return tools.metric(asker, "mf_stage_audits_total").get('{verdict="agreed"}', 0) >= 1

        wait_until(agreed, FOUND_WITHIN, "an audit agreed")
        liar = join("liar", "skip").wait_ready()
        swarm.wait_met()
        liar.event("layers_served", SERVED_WITHIN)
        began, asked = time.monotonic(), 0

        def named() -> bool:
            nonlocal asked
            asked += 1  # another beginning each time: one that was asked before goes over the same stages again
            tools.ask(asker, told["name"], f"{asked} {PROMPT}", TOKENS, precision="bf16")
            return bool(asker.cli("status")["blamed"])

        wait_until(named, FOUND_WITHIN, "the liar to be named")
        tools.report("liar named", f"{time.monotonic() - began:.1f} s and {asked} replies after it served layers")
        assert {line["peer_id"] for line in asker.cli("status")["blamed"]} == {liar.peer_id}
        asker.stop()
        asker.start()
        kept = asker.cli("audit", "stages", "--verify")
        assert {one["wrong"] for one in kept["findings"]} <= {liar.peer_id, None}
        assert any(one["wrong"] == liar.peer_id and one["holds"] for one in kept["findings"])
        assert kept["damaged"] == []
        for node in swarm.nodes:
            assert "Traceback" not in node.log.read_text()
