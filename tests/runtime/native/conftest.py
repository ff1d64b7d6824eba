"""The compiled kernels of this machine, made at first use and kept where nodes keep theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bootstrap.demo_model import cache_folder
from runtime import processor
from runtime.native import crew, kernels, runner


@pytest.fixture(scope="session")
def run() -> kernels.Run:
    before = os.environ.get(kernels.FOLDER)
    os.environ[kernels.FOLDER] = str(cache_folder() / "kernels")
    try:
        found = kernels.found.__wrapped__()
    finally:
        if before is None:
            del os.environ[kernels.FOLDER]
        else:
            os.environ[kernels.FOLDER] = before
    assert callable(found), found
    return found


@pytest.fixture
def team(run: kernels.Run) -> Iterator[crew.Crew]:
    """Three threads, whatever cores there are."""
    made = crew.Crew(run, 3)
    yield made
    made.stop()


@pytest.fixture
def kernels_here(team: crew.Crew, monkeypatch: pytest.MonkeyPatch) -> crew.Crew:
    """Stages that can be run by kernels are, whatever this processor would rather do."""
    monkeypatch.setattr(runner, "crew", lambda: team)
    monkeypatch.setattr(runner, "multiplies_bf16", lambda: False)
    assert processor.multiplies_bf16() in (True, False)
    return team
