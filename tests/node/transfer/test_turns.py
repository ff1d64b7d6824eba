"""Turns: in order, the next when little is left, nobody kept for ever by one that gives nothing."""

from __future__ import annotations

import asyncio

import pytest

from node.transfer import turns as module
from node.transfer.turns import LEFT_AT_MOST, Turns


class Crowd:
    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, *names: str, size: int = LEFT_AT_MOST) -> None:
        for name in names:
            self.tasks.append(asyncio.create_task(self._enter(name, size)))
            await asyncio.sleep(0)

    async def _enter(self, name: str, size: int) -> None:
        await self.turns.enter(name, size)
        self.begun.append(name)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_one_begins_when_little_of_the_others_is_left() -> None:
    crowd = Crowd()
    await crowd.ask("a", "b", "c", "d", size=LEFT_AT_MOST)
    assert crowd.begun == ["a", "b"]
    crowd.turns.came("a", LEFT_AT_MOST // 2)
    await crowd.settle()
    assert crowd.begun == ["a", "b"]
    crowd.turns.came("a", LEFT_AT_MOST // 2)
    await crowd.settle()
    assert crowd.begun == ["a", "b", "c"]
    crowd.turns.leave("b")
    await crowd.settle()
    assert crowd.begun == ["a", "b", "c", "d"]


async def test_small_ones_go_side_by_side() -> None:
    crowd = Crowd()
    await crowd.ask(*"abcdefgh", size=LEFT_AT_MOST // 8)
    assert crowd.begun == list("abcdefgh")


async def test_who_leaves_the_queue_holds_up_nobody() -> None:
    crowd = Crowd()
    await crowd.ask("a", "b", "c", "d", size=LEFT_AT_MOST + 1)
    assert crowd.begun == ["a"]
    crowd.tasks[1].cancel()
    await crowd.settle()
    crowd.turns.leave("a")
    await crowd.settle()
    assert crowd.begun == ["a", "c"]


async def test_one_that_gives_nothing_keeps_the_others_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_AT_MOST", 0.02)
    crowd = Crowd()
    await crowd.ask("stuck", "b", size=2 * LEFT_AT_MOST)
    async with asyncio.timeout(5):
        await crowd.tasks[1]
    assert crowd.begun == ["stuck", "b"]
