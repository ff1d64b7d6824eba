"""More replies at once than the stages of real nodes have room for: they wait in line, hear their place, and all come, unchanged."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from node.cli.owner_client import call
from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.swarm import tools

pytestmark = pytest.mark.swarm

ROOM, TOKENS, AT_ONCE = 256, 150, 4


def ask(node: Node, model: str, number: int) -> tuple[str, list[int], list[dict[str, Any]]]:
    """Text, places in line, route."""
    text, places = "", []

    def on_event(event: dict[str, Any]) -> None:
        nonlocal text
        if event["event"] == "queued":
            places.append(event["position"])
        elif event["event"] == "text":
            text += event["text"]

    prompt = {"role": "user", "content": f"{number} is the number"}
    wanted = {"model": model, "messages": [prompt], "max_tokens": TOKENS, "precision": "fp32"}
    end = call(node.data_dir, "generate", wanted, on_event, timeout=120.0)
    return text, places, end["route"]


def test_a_crowd_waits_for_stages_and_every_reply_comes(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    memory = tools.memory_for_stages(model, 2, ROOM)
    with Swarm(tmp_path, 3, "--lend", "both", "--max-memory", memory) as swarm:
        name = swarm.nodes[0].cli("publish", str(model), "--name", "tiny")["name"]
        alone = [ask(swarm.nodes[0], name, number) for number in range(AT_ONCE)]
        assert all(len(route) == 2 and not places for _text, places, route in alone)
        askers = [swarm.nodes[number % 2] for number in range(AT_ONCE)]
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            crowd = list(pool.map(lambda one: ask(one[1], name, one[0]), enumerate(askers)))
        waited = sum(bool(places) for _text, places, _route in crowd)
        tools.report("a crowd at full stages", f"{AT_ONCE} replies in {time.monotonic() - began:.1f} s, {waited} waited in line")
        assert [text for text, _places, _route in crowd] == [text for text, _places, _route in alone]
        assert waited, "nobody had to wait: the stages weren't full"
        assert all(1 <= place <= AT_ONCE for _text, places, _route in crowd for place in places)
        assert not any("stage_lost" in node.log.read_text() for node in swarm.nodes), "a stage without room is no lost one"
