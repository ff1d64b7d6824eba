"""A worker that was stopped is ended; one that computes, waits or was never asked isn't."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from node.worker_pulse import BEAT, STILL, STOPPED, WorkerPulse, processor_time
from tests.support.wait import wait_until

BUSY = "while True: pass"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen([sys.executable, "-c", BUSY])
    wait_until(lambda: processor_ticks(made.pid) > 10, 10.0, "a busy process")
    yield made
    made.kill()
    made.wait()


def state(pid: int) -> str:
    return processor_time(pid)[0]


def processor_ticks(pid: int) -> int:
    return processor_time(pid)[1]


def pulse(pid: int | None, waiting: int) -> WorkerPulse:
    worker: Any = SimpleNamespace(pid=pid, waiting=waiting)
    return WorkerPulse(worker)


def test_a_stopped_worker_that_owes_an_answer_is_ended(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: state(process.pid) == "T", 5.0, "the stop")
    looks = pulse(process.pid, 1)
    for _ in range(STOPPED):
        assert process.poll() is None
        looks.look()
    assert process.wait(5.0) == -signal.SIGKILL


def test_a_frozen_worker_that_the_system_calls_asleep_is_ended_later() -> None:
    asleep = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    assert asleep.stdout is not None
    asleep.stdout.readline()
    wait_until(lambda: state(asleep.pid) == "S", 5.0, "its sleep")
    looks = pulse(asleep.pid, 1)
    for _ in range(STILL + 1):
        assert asleep.poll() is None
        looks.look()
    assert asleep.wait(5.0) == -signal.SIGKILL
    asleep.stdout.close()


def test_a_stopped_worker_that_owes_nothing_is_left_alone(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    looks = pulse(process.pid, 0)
    for _ in range(3 * STILL):
        looks.look()
    assert process.poll() is None


def test_a_busy_worker_lives(process: subprocess.Popen[bytes]) -> None:
    looks = pulse(process.pid, 3)
    for _ in range(2 * STILL):
        before = processor_ticks(process.pid)
        wait_until(lambda before=before: processor_ticks(process.pid) > before, 10.0, "a tick")  # type: ignore[misc]
        looks.look()
    assert process.poll() is None


def test_no_worker_and_no_figures_are_no_fault() -> None:
    pulse(None, 1).look()
    assert processor_ticks(2**22 + 1) == -1
    looks = pulse(2**22 + 1, 1)
    for _ in range(2 * STILL):
        looks.look()


@pytest.mark.parametrize(("waiting", "ago", "beats"), [(0, 5.0, False), (1, 5.0, True), (0, BEAT / 2, True), (0, BEAT, False)])
async def test_it_beats_while_the_worker_computes(waiting: int, ago: float, beats: bool) -> None:
    worker: Any = SimpleNamespace(pid=None, waiting=waiting, computed_at=100.0 - ago)
    heard: list[float] = []

    async def beat(seconds: float) -> None:
        heard.append(seconds)

    made = WorkerPulse(worker, beat)
    for now in (100.0, 100.0 + BEAT / 4):
        await made._beat(now)
    assert heard == ([2 * BEAT] if beats else []), "and no oftener than is needed"
    await WorkerPulse(worker)._beat(100.0)
