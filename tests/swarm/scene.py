"""One swarm that several files of tests go through: made once, since a swarm with workers takes long to come up.

Four holders of a tiny model (k = 2, n = 4) and a fifth node that holds nothing and asks. The bound on memory is such that the model takes
three stages, so every reply is a pipeline's. What is asked holds a canary, for which `test_secrets` looks everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools

K, N = 2, 4
CANARY = "Xylo-9317-phant"
PROMPT, TOKENS = f"abc {CANARY}", 120
LONG = 1_900
"""Tokens for which even half the precision needs a pipeline."""
STARTED_WITHIN = 60.0
"""Seconds for a worker and its first stage."""


@dataclass
class Scene:
    """The scene: four holders, a fifth node that holds nothing and asks, the model, its files' digests, the undisturbed reply."""

    swarm: Swarm
    asker: Node
    model: str
    model_id: str
    files: dict[str, str]
    text: str = ""
    metrics: list[str] = field(default_factory=list)
    """What nodes that are gone said at /metrics."""

    def ask(self, meanwhile: Callable[[tools.Reply], None] | None = None) -> tools.Reply:
        return tools.ask(self.asker, self.model, PROMPT, TOKENS, meanwhile=meanwhile)

    def fetch(self, folder: Path) -> float:
        """Seconds of a fetch by the asker that must be bit-identical."""
        began = time.monotonic()
        self.asker.cli("fetch", self.model, str(folder))
        took = time.monotonic() - began
        assert tools.digests(folder) == self.files
        return took

    def kill(self, node: Node) -> None:
        self.metrics.append(node.http("GET", "/metrics")[2].decode())
        node.kill()

    def node(self, peer: str) -> Node:
        return next(node for node in self.swarm.nodes if node.peer_id == peer)

    def others_in(self, route: list[dict[str, Any]]) -> list[Node]:
        return [self.node(one["peer"]) for one in route if one["peer"] != self.asker.peer_id]

    def alive(self, seen_by: Node | None = None) -> set[str]:
        """Who is asked, as the asker or another node sees it."""
        return {peer["peer_id"] for peer in (seen_by or self.asker).cli("status")["peers"] if peer["alive"]}

    def until_alive(self, node: Node) -> None:
        wait_until(lambda: node.peer_id in self.alive(), 30.0, f"{node.data_dir.name} to be asked again")


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("faults")
    model = tiny_llama(folder / "model", layers=6, inner=2_048)
    memory = tools.memory_for_stages(model, 2, 2 * TOKENS)
    # Without audits, which would find noise on a disk before the reader that a test sends there.
    with Swarm(folder, N, "--lend", "both", "--max-memory", memory, env={"MF_AUDITS": "false"}) as swarm:
        told = swarm.nodes[0].cli("publish", str(model), "--name", "tiny", "--k", str(K), "--n", str(N))
        asker = swarm.add("--join", swarm.nodes[1].ticket)
        scene = Scene(swarm, asker, told["name"], told["model_id"], tools.digests(model))
        whole = scene.ask()
        assert whole.error is None
        assert len(whole.route) >= 3
        # A node that has never loaded anything takes seconds to begin: nothing that these tests measure.
        running = {one["peer"] for one in whole.route} | {asker.peer_id}
        for node in swarm.nodes:
            if node.peer_id not in running:
                asker.event("standby_ready", STARTED_WITHIN, peer=node.peer_id)
        scene.text = whole.text
        yield scene
