"""A worker process that stands by, with real ones: it takes over at once, leaves nothing, and nobody waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from node import spare_worker, worker_process
from node.worker import Worker
from protocol.errors import Unavailable
from tests.node.test_worker import load_tiny, text_message
from tests.support.wait import until

SLACK = 3


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setattr(spare_worker, "AFTER", 0.0)
    monkeypatch.setattr(spare_worker, "FREE", 0)
    made = Worker(tmp_path / "scratch", threads=1, memory=50_000_000, spare=True)
    yield made
    await made.stop()
    assert list((tmp_path / "scratch").iterdir()) == []


async def stands_by(worker: Worker) -> int:
    """The pid of the one that does."""
    await until(lambda: worker._spare.ready, 60.0, "a worker stands by")
    assert worker._spare._ready is not None
    return worker._spare._ready.pid


async def test_it_takes_over_at_once_with_nothing_loaded(worker: Worker) -> None:
    await load_tiny(worker)
    first, second = worker.pid, await stands_by(worker)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    killed = time.monotonic()
    await until(lambda: worker.pid == second and worker.running, 0.5 * SLACK, "the other one takes over unasked")
    await worker.load_text(text_message())
    assert time.monotonic() - killed < 2.0 * SLACK
    assert (worker.generation, worker.stages, worker.killed) == (2, {}, True)
    await load_tiny(worker)


@pytest.mark.nightly
async def test_one_that_dies_while_it_stands_by_is_no_loss(worker: Worker) -> None:
    await worker.ping()
    spare = await stands_by(worker)
    os.kill(spare, signal.SIGKILL)
    await until(lambda: not worker._spare.ready, 5.0, "its end is known")
    assert (worker.running, worker.generation, worker.failures) == (True, 1, 0)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: not worker.running, 5.0, "the worker's end is known")
    await worker.ping()
    assert worker.generation == 2


async def test_there_is_none_where_memory_is_short_or_it_cant_start(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_worker, "FREE", psutil.virtual_memory().total + 1)
    await worker.ping()
    assert worker._spare._making is not None
    await worker._spare._making
    assert not worker._spare.ready

    async def cant(*_: Any, **__: Any) -> Any:
        raise Unavailable("the worker can't be started: no more processes")

    monkeypatch.setattr(spare_worker, "FREE", 0)
    monkeypatch.setattr(worker_process.WorkerProcess, "spawn", cant)
    worker._spare.ask()
    await worker._spare._making
    assert not worker._spare.ready
    await worker.ping()


async def test_a_node_that_stops_meanwhile_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_worker, "AFTER", 0.0)
    monkeypatch.setattr(spare_worker, "FREE", 0)
    worker = Worker(tmp_path / "scratch", threads=1, memory=50_000_000, spare=True)
    await worker.ping()
    folders = tmp_path / "scratch"
    await until(lambda: len(list(folders.iterdir())) == 2, 10.0, "another one is being made")
    began = time.monotonic()
    await asyncio.wait_for(worker.stop(), 3.0 * SLACK)
    assert time.monotonic() - began < 3.0 * SLACK
    assert list(folders.iterdir()) == []
