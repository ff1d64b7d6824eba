"""A real swarm of three nodes, none of which can hold the model alone: what a client gets went through three processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bench.stage_swarm import least_for
from bootstrap.demo_model import demo_model
from tests.support.processes import Node, Swarm
from tests.support.wait import wait_until

TOKENS = 4096
"""Positions that all sessions have at once: the model takes all three nodes, and the clients don't wait for each other's room."""


@dataclass(frozen=True)
class Served:
    """`url` the second node's, which published nothing; `model` the demo model's name."""

    url: str
    model: str
    node: Node


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = demo_model()
    options = ("--lend", "both", "--max-memory", str(least_for(folder, 3, TOKENS)), "--ollama")
    with Swarm(tmp_path_factory.mktemp("clients"), 3, *options) as swarm:
        told = swarm.nodes[0].cli("publish", str(folder), "--name", "smollm2", timeout=240.0)
        asked = swarm.nodes[1]
        wait_until(lambda: asked.cli("models", "smollm2")["models"] != [], 30.0, "the second node knows the model")
        body = {"model": told["name"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        status, headers, said = asked.http("POST", "/v1/chat/completions", body, timeout=240.0)
        assert status == 200, said
        assert headers["x-mf-route"].count("[") == 3
        yield Served(asked.url, told["name"], asked)
