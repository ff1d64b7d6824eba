"""What an executor does is waited for to its end, however often the one who waits is cancelled."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.transfer.finishing import to_the_end
from tests.support.wait import until


@pytest.mark.parametrize("times", [1, 3])
async def test_being_cancelled_waits(times: int) -> None:
    begun, may_end, held = threading.Event(), threading.Event(), True

    def work() -> bool:
        begun.set()
        assert may_end.wait(20.0)
        return held

    async def hold() -> bool:
        nonlocal held
        try:
            return await to_the_end(asyncio.get_running_loop().run_in_executor(executor, work))
        finally:
            held = False

    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(hold())
        await until(begun.is_set, 20.0, "the work has begun")
        for _ in range(times):
            task.cancel()
            await asyncio.wait([task], timeout=0.05)
            assert not task.done()
            assert held
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 20.0)
    assert task.cancelled()


async def test_what_it_gives_or_raises_comes_through() -> None:
    with ThreadPoolExecutor(1) as executor:
        loop = asyncio.get_running_loop()
        assert await to_the_end(loop.run_in_executor(executor, lambda: 7)) == 7
        with pytest.raises(ValueError, match="no"):
            await to_the_end(loop.run_in_executor(executor, int, "no"))
