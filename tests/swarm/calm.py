"""One swarm of three real processes, with a tiny model in it, for the tests that only read it or are refused by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until

PUBLISHED = "tiny"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Swarm]:
    """Three nodes that lend everything; `tiny` is published from the first. Tests leave them as they found them."""
    with Swarm(tmp_path_factory.mktemp("calm"), 3, "--lend", "both") as swarm:
        swarm.nodes[0].cli("publish", str(model_folder), "--name", PUBLISHED)
        for node in swarm.nodes:
            wait_until(lambda node=node: node.cli("models", PUBLISHED)["models"] != [], 10.0, "every node knows the model")
        yield swarm
