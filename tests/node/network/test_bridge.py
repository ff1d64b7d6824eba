from __future__ import annotations

import asyncio

import pytest
import trio
import trio.lowlevel

from node.network.bridge import Bridge, BridgeStopped


async def test_a_trio_function_gives_its_result_or_its_error() -> None:
    bridge = await Bridge.acquire()

    async def double(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number

    async def group() -> None:
        raise BaseExceptionGroup("several", [ValueError("the real one")])

    assert await bridge.run(double, 21) == 42
    with pytest.raises(ValueError, match="the real one"):
        await bridge.run(group)
    await bridge.release()


async def test_cancelling_the_wait_never_cancels_the_work() -> None:
    bridge = await Bridge.acquire()
    go, late = trio.Event(), asyncio.get_running_loop().create_future()

    async def work() -> str:
        await go.wait()
        return "written whole"

    waiting = asyncio.ensure_future(bridge.run(work, abandoned=late.set_result))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    bridge.call_soon(go.set)
    assert await asyncio.wait_for(late, 2) == "written whole"
    await bridge.release()


async def test_the_last_release_ends_trio_and_its_waiters_quickly() -> None:
    first, second = await Bridge.acquire(), await Bridge.acquire()
    assert first is second
    await first.release()
    waiting = asyncio.ensure_future(second.run(trio.sleep_forever))
    await asyncio.sleep(0.01)
    before = asyncio.get_running_loop().time()
    await second.release()
    assert asyncio.get_running_loop().time() - before < 1
    with pytest.raises(BridgeStopped):
        await waiting
    with pytest.raises(BridgeStopped):
        await second.run(trio.sleep_forever)
    again = await Bridge.acquire()
    assert again is not first
    await again.run(trio.sleep, 0)
    await again.release()
