from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.accounts import passwords
from tests.node.accounts.world import FakeSwarm, Home, close_home, open_home


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least argon2id there is: what is tested is who gets in, not how long it takes."""
    monkeypatch.setattr(passwords, "_MEMORY_KIB", 8)
    monkeypatch.setattr(passwords, "_ITERATIONS", 1)


@pytest.fixture
def swarm() -> FakeSwarm:
    return FakeSwarm()


@pytest.fixture
async def home(tmp_path: Path, swarm: FakeSwarm) -> AsyncIterator[Home]:
    made = await open_home(tmp_path / "home", swarm)
    yield made
    await close_home(made)


@pytest.fixture
async def other(tmp_path: Path, swarm: FakeSwarm) -> AsyncIterator[Home]:
    made = await open_home(tmp_path / "other", swarm, 2)
    yield made
    await close_home(made)
