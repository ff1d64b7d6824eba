from __future__ import annotations

import asyncio
import json
import queue
import time
from pathlib import Path

import pytest

from tests.support.virtual_time import run_virtual
from tests.support.wait import until, wait_for_event, wait_until


async def test_until_takes_plain_and_awaited_conditions_and_names_what_failed() -> None:
    async def yes() -> bool:
        return True

    await until(yes, 1, "an awaited truth")
    await until(lambda: True, 1, "a truth")
    with pytest.raises(AssertionError, match="the moon"):
        await until(lambda: False, 0.01, "the moon")
    with pytest.raises(AssertionError, match="the sun"):
        wait_until(lambda: False, 0.01, "the sun")


def test_events_are_found_in_a_log_and_in_a_queue(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "noise\n" + json.dumps({"event": "ready", "fields": {"peer": "b"}}) + "\n" + json.dumps({"event": "ready", "peer": "a"}) + "\n"
    )
    assert wait_for_event(log, "ready", 1, peer="a")["peer"] == "a"
    assert wait_for_event(log, "ready", 1, peer="b")["fields"] == {"peer": "b"}
    with pytest.raises(AssertionError, match="no event 'gone'"):
        wait_for_event(log, "gone", 0.05)
    records: queue.Queue[dict[str, object]] = queue.Queue()
    records.put({"event": "ready"})
    assert wait_for_event(records, "ready", 1)


def test_virtual_time_passes_an_hour_at_once() -> None:
    started = time.monotonic()

    async def hour() -> float:
        before = asyncio.get_running_loop().time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
        return asyncio.get_running_loop().time() - before

    assert run_virtual(hour()) == pytest.approx(3600)
    assert time.monotonic() - started < 2
