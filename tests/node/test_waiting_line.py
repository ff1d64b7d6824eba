"""Room is given in order, nobody waits for ever, and whoever can't wait is told when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from node.waiting_line import Asker, NoRoomNow, WaitingLine
from protocol.errors import Busy, Unavailable
from tests.support.virtual_time import run_virtual


class Room:
    """`free` places."""

    def __init__(self, free: int, most: int = 256, patience: float = 60.0) -> None:
        self.free = free
        self.line = WaitingLine(lambda: asyncio.get_running_loop().time(), most, patience)
        self.order: list[str] = []

    async def ask(self, name: str, account: str = "", told: Callable[[int], None] | None = None, **more: Any) -> None:
        async def attempt() -> None:
            if not self.free:
                raise NoRoomNow
            self.free -= 1

        await self.line.enter(Asker(account, told, **more), attempt)
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
            await line.enter(Asker(), attempt)
        assert len(line) == 0

    run_virtual(scene())


def test_what_has_begun_goes_first_where_that_is_believed_else_first_of_its_account() -> None:
    async def scene() -> None:
        room = Room(0)
        asks: list[tuple[str, str, dict[str, Any]]] = [
            ("a1", "a", {}), ("a2", "a", {}), ("b1", "b", {}),
            ("a3", "a", {"begun": True, "believed": False}), ("b2", "b", {"begun": True}),
        ]  # fmt: skip
        asked = [asyncio.create_task(room.ask(name, account, **how)) for name, account, how in asks]
        await settle()
        for _ in asks:
            room.leave()
            await settle()
        await asyncio.gather(*asked)
        assert room.order == ["b2", "a1", "b1", "a3", "a2"], "a claim isn't worth another account's turn"

    run_virtual(scene())


def test_a_begun_reply_finds_a_place_in_a_full_line() -> None:
    async def scene() -> None:
        room = Room(0, most=1)
        asked = [asyncio.create_task(room.ask("waits"))]
        await settle()
        with pytest.raises(Busy, match="most allowed"):
            await room.ask("claims", begun=True, believed=False)
        asked.append(asyncio.create_task(room.ask("begun", begun=True)))
        await settle()
        room.leave()
        await settle()
        room.leave()
        await asyncio.gather(*asked)
        assert room.order == ["begun", "waits"]

    run_virtual(scene())


def test_one_asker_has_a_part_of_the_line() -> None:
    async def scene() -> None:
        room = Room(0)
        asked = [asyncio.create_task(room.ask("waits", "peer", most=2)) for _ in range(2)]
        await settle()
        with pytest.raises(Busy, match="2 requests of one asker") as caught:
            await room.ask("third", "peer", most=2)
        assert caught.value.details == {"position": 3, "retry_after": 3}
        asked.append(asyncio.create_task(room.ask("other", "other", most=2)))
        await settle()
        for _ in range(3):
            room.leave()
            await settle()
        await asyncio.gather(*asked)

    run_virtual(scene())


def test_whoever_doesnt_wait_waits_for_those_being_let_in_alone() -> None:
    async def scene() -> None:
        line, let, entered = WaitingLine(lambda: asyncio.get_running_loop().time()), asyncio.Event(), 0

        async def slow() -> None:
            await let.wait()

        async def at_once() -> None:
            nonlocal entered
            entered += 1
            if entered > 1:
                raise NoRoomNow

        first = asyncio.create_task(line.enter(Asker(), slow))
        await asyncio.sleep(30.0)
        others = [asyncio.create_task(line.enter(Asker(patience=0.0), at_once)) for _ in range(3)]
        await asyncio.sleep(200.0)
        assert not any(one.done() for one in others), "the first loads: nobody knows yet that there is no room"
        let.set()
        before = asyncio.get_running_loop().time()
        done = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(one) for one in done] == [type(None), type(None), Busy, Busy]
        assert asyncio.get_running_loop().time() == before
        waiting = asyncio.create_task(line.enter(Asker(), at_once))
        await settle()
        with pytest.raises(Busy, match="no room just now, 1 requests"):
            await line.enter(Asker(patience=0.0), at_once)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    run_virtual(scene())


def test_the_reason_comes_with_the_refusal() -> None:
    async def scene() -> None:
        async def attempt() -> None:
            raise NoRoomNow from Unavailable("the stage takes 5 bytes, 1 is free", details={"needed": 5})

        with pytest.raises(Busy, match=r"takes 5 bytes, 1 is free; no room within 2 s, 0 requests") as caught:
            await WaitingLine(lambda: asyncio.get_running_loop().time()).enter(Asker(patience=2.0), attempt)
        assert caught.value.details == {"needed": 5, "position": 1, "retry_after": 1}

    run_virtual(scene())
