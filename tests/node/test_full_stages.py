"""Overload through stages: others with room first, then a place in line that is told, then 429 and when to come back; never a collapse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from node.gateway import Finished, Queued
from node.http.errors import error_response
from node.network.memory import MemoryHub
from node.opening_order import held_while_waiting, turns
from node.waiting_line import PATIENCE, Asker
from protocol.errors import Busy, MfError
from protocol.framing import pack, unpack
from protocol.ids import PeerId
from protocol.messages import OpenSession, Sampling, StageSpec
from runtime.interface import OpenSequence
from tests.node.pipeline_fakes import LAYERS, Member, expected, route
from tests.node.test_generate import PROMPT, Setting, ask, said, shown, virtually
from tests.support.wait import until

OTHER = [2, 7, 18]


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def occupied(full: Member) -> AsyncIterator[Callable[[], None]]:
    """Somebody's session there that doesn't end by itself; called, it does."""
    over, within = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with full.room.sequence(None, 0, LAYERS, "bf16", OpenSequence("", "somebody's", 16, Sampling()), Asker("somebody")):
            within.set()
            await over.wait()

    task = asyncio.create_task(run())
    await within.wait()
    try:
        yield over.set
    finally:
        over.set()
        await task


async def hear(setting: Setting, positions: list[int]) -> None:
    """The reply's places in line, also where it ends badly."""
    async with aclosing(setting.generator.generate(ask(timeout=600.0))) as events:
        async for event in events:
            positions += [event.position] if isinstance(event, Queued) else []


@pytest.mark.parametrize("where", ["another's", "its own", "one of two"])
def test_stages_without_room_end_in_429_with_retry_after(where: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        full = nodes[0] if where == "its own" else nodes[1]
        full.room.places = 1
        setting = Setting(nodes, route(full.peer, nodes[2].peer) if where == "one of two" else route(full.peer))
        async with occupied(full):
            heard: list[int] = []
            began, asked = now(), full.room.asked
            with pytest.raises(Busy, match="no room within 60 s, 0 requests") as caught:
                await hear(setting, heard)
            assert PATIENCE <= now() - began < PATIENCE + 3.0
            assert heard == [1]
            assert full.room.asked - asked == 2, "once to try, once to wait: no polling"
        response = error_response(make_mocked_request("POST", "/v1/chat/completions"), caught.value)
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert not setting.suspects
        assert not len(full.room.line)
        await until(lambda: not nodes[2].room.open, 1.0, "what was opened beside it is given back")

    virtually(test)


def test_whoever_waits_hears_its_place_and_gets_in_when_room_comes_free() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.places = 1
        settings = [Setting([nodes[at], nodes[1]], route(nodes[1].peer)) for at in (0, 2)]
        async with occupied(nodes[1]) as end:
            waiting = []
            for setting in settings:
                waiting.append(asyncio.create_task(setting.events(timeout=600.0)))
                await asyncio.sleep(3.0)
            assert len(nodes[1].room.line) == 2
            end()
            first, second = await asyncio.gather(*waiting)
        for events in (first, second):
            assert said(events) == shown(expected(PROMPT, 8))
        assert [event.position for event in first if isinstance(event, Queued)] == [1]
        assert [event.position for event in second if isinstance(event, Queued)] == [2, 1]
        assert nodes[1].room.order[-2:] == [nodes[0].peer, nodes[2].peer]

    virtually(test)


def test_another_holder_with_room_comes_before_any_line() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.places = 0
        setting = Setting(nodes, route(nodes[1].peer), route(nodes[2].peer, nodes[3].peer))
        began = now()
        events = await setting.events()
        assert said(events) == shown(expected(PROMPT, 8))
        assert not any(isinstance(event, Queued) for event in events)
        assert now() - began < 2.0
        assert not setting.suspects

    virtually(test)


def test_replies_that_need_each_others_stages_dont_wait_for_each_other() -> None:
    """Each of two full nodes is the first stage of the one and the last of the other."""

    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        one, two = nodes[1], nodes[2]
        one.room.places = two.room.places = 1
        ways = route(one.peer, two.peer), route(two.peer, one.peer)
        replies = [Setting([nodes[0 if at % 2 else 3], one, two], ways[at % 2]) for at in range(8)]
        began = now()
        done = await asyncio.gather(*(setting.events(max_tokens=30, timeout=600.0) for setting in replies))
        assert [said(events) for events in done] == [shown(expected(PROMPT, 30))] * 8
        assert now() - began < PATIENCE / 2
        assert not any(setting.suspects for setting in replies)

    virtually(test)


def test_begun_replies_that_hold_what_the_other_needs_both_go_on() -> None:
    """A third node's death leaves each with one stage of the two nodes that are left, both full by that."""

    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        one, two, lost = nodes[1], nodes[2], nodes[3]
        both = route(two.peer, one.peer)
        first = Setting([nodes[0], *nodes[1:]], route(lost.peer, one.peer), both)
        second = Setting([nodes[0], *nodes[1:]], route(two.peer, lost.peer), both)
        begun: list[Setting] = []

        async def run(setting: Setting) -> Any:
            def kill() -> None:
                begun.append(setting)
                if len(begun) == 2:
                    one.room.places = two.room.places = 1
                    hub.kill(lost.peer)

            return await setting.events(kill, max_tokens=400, timeout=600.0)

        began = now()
        for events in await asyncio.gather(run(first), run(second)):
            assert said(events) == shown(expected(PROMPT, 400))
            assert isinstance(events[-1], Finished)
            assert any(isinstance(event, Queued) for event in events) or events[-1].replaced
        assert now() - began < PATIENCE / 2

    virtually(test)


def test_a_reply_that_has_begun_goes_before_those_that_wait() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        full = nodes[1]
        full.room.places = 1
        full.server.prefer(lambda peer: True)
        newcomer, begun = Setting([nodes[2], full], route(full.peer)), Setting([nodes[0], full], route(nodes[3].peer), route(full.peer))
        async with occupied(full) as end:
            waiting = asyncio.create_task(newcomer.events(timeout=600.0))
            await until(lambda: len(full.room.line) == 1, 5.0, "the newcomer waits")
            going = asyncio.create_task(begun.events(lambda: hub.kill(nodes[3].peer), max_tokens=200, timeout=600.0))
            await until(lambda: len(full.room.line) == 2, 10.0, "the one that has begun waits too")
            end()
            events, _ = await asyncio.gather(going, waiting)
        assert said(events) == shown(expected(PROMPT, 200))
        assert full.room.order[-2:] == [nodes[0].peer, nodes[2].peer]

    virtually(test)


def test_a_stage_that_dies_while_a_reply_waits_there_is_replaced() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.places = 1
        setting = Setting(nodes, route(nodes[1].peer))
        async with occupied(nodes[1]):
            waiting = asyncio.create_task(setting.events(timeout=600.0))
            await until(lambda: len(nodes[1].room.line) == 1, 5.0, "it waits")
            setting.routes.routes.append(route(nodes[2].peer))
            hub.kill(nodes[1].peer)
            assert said(await waiting) == shown(expected(PROMPT, 8))
        assert setting.suspects == [nodes[1].peer]

    virtually(test)


def test_a_reader_who_leaves_the_line_is_gone_from_it() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.places = 1
        setting = Setting(nodes, route(nodes[1].peer))
        async with occupied(nodes[1]):
            waiting = asyncio.create_task(setting.events(timeout=600.0))
            await until(lambda: len(nodes[1].room.line) == 1, 5.0, "it waits")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await until(lambda: len(nodes[1].room.line) == 0, 3.0, "gone")

    virtually(test)


def test_a_place_that_cant_be_is_the_stages_fault() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.places = 1
        setting = Setting(nodes, route(nodes[1].peer))
        async with occupied(nodes[1]):
            setting.routes.routes.append(route(nodes[2].peer))
            nodes[1].room.line.__class__ = type("Liar", (nodes[1].room.line.__class__,), {"enter": _enter_far_back})
            setting.routes.routes[:] = [route(nodes[1].peer)]
            waiting = asyncio.create_task(setting.events(timeout=600.0))
            await asyncio.sleep(1.0)
            setting.routes.routes.append(route(nodes[2].peer))
            assert said(await waiting) == shown(expected(PROMPT, 8))
        assert nodes[1].peer in setting.suspects

    virtually(test)


async def _enter_far_back(_self: Any, asker: Any, _attempt: Any) -> Any:
    asker.told(1 << 40)
    await asyncio.Event().wait()


@pytest.mark.parametrize("wait", [-1.0, float("nan"), 1e9])
def test_a_wait_out_of_range_is_refused(wait: float) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer))
        ordinary = nodes[0].network.open

        async def open_with(peer: PeerId, protocol: str, timeout: float = 3.0) -> Any:
            stream = await ordinary(peer, protocol, timeout)
            send = stream.send

            async def altered(frame: bytes, within: float = 5.0) -> None:
                opening = unpack(frame, OpenSession, "the test's own")
                opening.wait = wait
                await send(pack(opening), within)

            stream.send = altered
            return stream

        nodes[0].network.open = open_with  # type: ignore[method-assign]
        with pytest.raises(MfError, match="wait"):
            await setting.events()

    virtually(test)


def spec(peer: str, first: int) -> StageSpec:
    return StageSpec(peer, first, first + 1)


def test_stages_are_waited_for_in_one_order_and_nothing_is_held_out_of_it() -> None:
    stages = [spec("b", 0), spec("a", 1), spec("c", 2), spec("a", 3)]
    assert turns([0, 1, 2, 3], stages, in_turn=True) == [[1, 3], [0], [2]]
    assert turns([0, 2], stages, in_turn=False) == [[0, 2]]
    assert turns([], stages, in_turn=False) == []
    links: dict[StageSpec, Any] = {stages[0]: "b", stages[2]: "c"}
    assert held_while_waiting(links, stages) == {}, "a's room is waited for, and comes first"
    links = {stages[1]: "a1", stages[3]: "a3", stages[2]: "c"}
    assert held_while_waiting(links, stages) == {stages[1]: "a1", stages[3]: "a3"}
    assert held_while_waiting({one: "x" for one in stages}, stages) == {one: "x" for one in stages}  # type: ignore[misc]
