"""Transfers give way to replies: when, for how long, and what never does."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.hurry import behind_replies, is_behind
from node.transfer import give_way
from node.transfer.give_way import MOST, RESTS, WORKED, Pace, RestingSelector


def test_only_what_is_behind_rests_and_only_while_replies_are_computed() -> None:
    pace = Pace()
    assert pace.rest(1.0, 0.0) == 0.0
    pace.give_way(2.0, now=10.0)
    assert pace.rest(1.0, 11.0) == 0.0, "nothing is fetched"
    with pace.job(behind=True):
        assert pace.rest(0.001, 11.0) == pytest.approx(0.003)
        assert pace.rest(0.001, 12.0) == 0.0, "nothing was computed for two seconds"
        with pace.job(behind=False):
            assert pace.rest(0.001, 11.0) == 0.0, "somebody waits for a group"
        assert pace.rest(0.001, 11.0) > 0
    assert pace.rest(0.001, 11.0) == 0.0


@given(worked=st.floats(0, 10), jobs=st.lists(st.booleans(), max_size=5), later=st.floats(-5, 5))
def test_a_rest_is_in_proportion_and_bounded(worked: float, jobs: list[bool], later: float) -> None:
    pace = Pace()
    pace.give_way(1.0, now=100.0)
    with ExitStack() as stack:
        for behind in jobs:
            stack.enter_context(pace.job(behind=behind))
        rest = pace.rest(worked, 100.0 + later)
    assert 0.0 <= rest <= min(MOST, RESTS * worked)
    assert (rest > 0) == (worked >= WORKED and later < 1.0 and bool(jobs) and all(jobs))
    assert pace.rest(1.0, 100.0) == 0.0, "jobs that have ended count no more"


def test_a_loop_rests_after_it_has_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(give_way.time, "sleep", rests.append)
    pace = Pace()

    async def work() -> None:
        for _ in range(10):
            until = time.thread_time() + 2 * WORKED
            while time.thread_time() < until:
                pass
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(RestingSelector(pace))) as runner:
        runner.run(work())
        assert rests == []
        pace.give_way(3_600.0, time.monotonic())
        with pace.job(behind=True):
            runner.run(work())
    assert 9 <= len(rests) <= 12
    assert all(RESTS * WORKED <= rest <= MOST for rest in rests)


async def test_what_is_started_within_is_behind_too() -> None:
    async def look() -> bool:
        return is_behind()

    assert not is_behind()
    with behind_replies():
        task = asyncio.create_task(look())
    assert await task
    assert not await asyncio.create_task(look())
