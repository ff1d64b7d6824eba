"""A loop that is held is noticed with the place that holds it; one that runs is left in peace."""

from __future__ import annotations

import asyncio
import time

import pytest

from node.watchdog import Watchdog
from tests.support.wait import until


def hold_the_loop(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [record.fields for record in caplog.records if getattr(record, "event", None) == "loop_held"]  # type: ignore[attr-defined]


async def test_who_holds_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(every=0.01, held=0.05)
    dog.start()
    for _ in range(20):
        await asyncio.sleep(0)
        hold_the_loop(0.4)
        if told(caplog):
            break
    dog.stop()
    await until(lambda: bool(told(caplog)), 3.0, "the watchdog's word")
    assert "hold_the_loop" in str(told(caplog)[0]["stack"])


async def test_a_loop_that_runs_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(every=0.01, held=2.0)
    dog.start()
    end = asyncio.get_running_loop().time() + 0.3
    await until(lambda: asyncio.get_running_loop().time() > end, 5.0, "a while")
    dog.stop()
    assert told(caplog) == []
