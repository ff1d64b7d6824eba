"""Room is given in order, nobody waits for ever, and whoever can't wait is told when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from node.waiting_line import NoRoomNow, WaitingLine
from protocol.errors import Busy
from tests.support.virtual_time import run_virtual


class Room:
    """`free` places."""

    def __init__(self, free: int, most: int = 256, patience: float = 60.0) -> None:
        self.free = free
        self.line = WaitingLine(lambda: asyncio.get_running_loop().time(), most, patience)
        self.order: list[str] = []

    async def ask(self, name: str, account: str = "", told: Callable[[int], None] | None = None) -> None:
        async def attempt() -> None:
            if not self.free:
                raise NoRoomNow
            self.free -= 1

        await self.line.enter(account, attempt, told)
        self.order.append(name)

    def leave(self) -> None:
        self.free += 1
        self.line.freed()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_room_is_given_in_order_and_accounts_take_turns() -> None:
    async def scene() -> None:
        room = Room(1)
        await room.ask("first")
        asked = [asyncio.create_task(room.ask(name, account)) for name, account in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"))]
        await settle()
        assert len(room.line) == 4
        for _ in range(4):
            room.leave()
            await settle()
        await asyncio.gather(*asked)
        assert room.order == ["first", "a1", "b1", "a2", "a3"]
        assert len(room.line) == 0

    run_virtual(scene())


def test_whoever_waits_hears_its_position_as_it_changes() -> None:
    async def scene() -> None:
        room = Room(1)
        heard: dict[str, list[int]] = {name: [] for name in ("at once", "first", "second", "third")}
        await room.ask("at once", told=heard["at once"].append)
        names = ("first", "second", "third")
        waiting = {name: asyncio.create_task(room.ask(name, told=heard[name].append)) for name in names}
        await settle()
        waiting["second"].cancel()
        await settle()
        for _ in range(2):
            room.leave()
            await settle()
        assert heard == {"at once": [], "first": [1], "second": [2], "third": [3, 2, 1]}

    run_virtual(scene())


def test_one_who_leaves_the_line_makes_way() -> None:
    async def scene() -> None:
        room = Room(1)
        await room.ask("first")
        leaves, stays = asyncio.create_task(room.ask("leaves")), asyncio.create_task(room.ask("stays"))
        await settle()
        leaves.cancel()
        room.leave()
        await stays
        assert room.order == ["first", "stays"]

    run_virtual(scene())


def test_a_full_line_and_a_long_wait_are_busy_with_position_and_time() -> None:
    async def scene() -> None:
        room = Room(0, most=2, patience=30.0)
        begun = asyncio.get_running_loop().time()
        waiting = [asyncio.create_task(room.ask(name)) for name in "ab"]
        await settle()
        with pytest.raises(Busy, match="2 requests wait for room here") as raised:
            await room.ask("c")
        assert raised.value.details["position"] == 3
        assert raised.value.details["retry_after"] >= 1
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, Busy) and "no room within 30 s" in end.message for end in ends)
        assert 30 <= asyncio.get_running_loop().time() - begun < 31
        assert len(room.line) == 0

    run_virtual(scene())


def test_another_fault_is_not_waited_for() -> None:
    async def scene() -> None:
        line = WaitingLine(lambda: 0.0)

        async def attempt() -> None:
            raise ValueError

        with pytest.raises(ValueError):  # noqa: PT011
            await line.enter("", attempt)
        assert len(line) == 0

    run_virtual(scene())
