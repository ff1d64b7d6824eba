from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.channel import Channel, ChannelClosed, Unreadable
from node.turn import Turn
from protocol.errors import DeadlineExceeded, MfError, NotFound
from protocol.framing import pack, unpack_plain
from tests.support.wait import until


class Far:
    """The methods of one end, and what became of them."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.waiting = asyncio.Event()

    def methods(self) -> dict[str, Any]:
        return {"echo": self.echo, "refuse": self.refuse, "wait": self.wait, "length": self.length}

    async def echo(self, params: Any, fds: list[int]) -> Any:
        return params

    async def refuse(self, params: Any, fds: list[int]) -> None:
        raise NotFound("no such thing", details={"candidates": ["another"]})

    async def wait(self, params: Any, fds: list[int]) -> None:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def length(self, params: Any, fds: list[int]) -> list[int]:
        try:
            return [os.fstat(fd).st_size for fd in fds]
        finally:
            for fd in fds:
                os.close(fd)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, Channel, Far]]:
    ours, theirs = socket.socketpair()
    far = Far()
    near_end, far_end = Channel(ours, {}, "far end"), Channel(theirs, far.methods(), "near end")
    near_end.start()
    far_end.start()
    yield near_end, far_end, far
    await near_end.close()
    await far_end.close()


Ends = tuple[Channel, Channel, Far]


async def test_answers_large_and_small_in_any_order(ends: Ends) -> None:
    sizes = [0, 1, 5_000_000, 300_000]
    answers = await asyncio.gather(*(ends[0].call("echo", {"data": bytes(size)}, dict) for size in sizes))
    assert [len(answer["data"]) for answer in answers] == sizes


async def test_descriptors_stay_with_their_messages(ends: Ends, tmp_path: Any) -> None:
    fds = []
    for size in range(6):
        (tmp_path / str(size)).write_bytes(bytes(size))
        fds.append(os.open(tmp_path / str(size), os.O_RDONLY))
    one, two, three = await asyncio.gather(
        ends[0].call("length", None, list[int], fds=fds[:2]),
        ends[0].call("length", bytes(1_000_000), list[int], fds=fds[2:5]),
        ends[0].call("length", None, list[int], fds=fds[5:]),
    )
    assert (one, two, three) == ([0, 1], [2, 3, 4], [5])
    for fd in fds:
        os.close(fd)


async def test_an_error_comes_back_under_its_own_class(ends: Ends) -> None:
    with pytest.raises(NotFound, match="no such thing") as caught:
        await ends[0].call("refuse", None, dict)
    assert caught.value.details == {"candidates": ["another"]}
    with pytest.raises(MfError, match="doesn't serve"):
        await ends[0].call("unheard of", None, dict)


async def test_an_answer_of_another_kind_is_an_error_without_its_contents(ends: Ends) -> None:
    with pytest.raises(Unreadable, match="the far end answered echo with something else than int: Expected `int`, got `str`") as caught:
        await ends[0].call("echo", "canary", int)
    assert "canary" not in str(caught.value)
    got: asyncio.Future[tuple[Any, MfError | None]] = asyncio.get_running_loop().create_future()
    ends[0].ask("echo", "canary", int, lambda result, error: got.set_result((result, error)))
    result, error = await got
    assert result is None
    assert isinstance(error, Unreadable)
    assert await ends[0].call("echo", 1, int) == 1


async def test_a_caller_that_leaves_stops_the_work(ends: Ends) -> None:
    near, _, far = ends
    call = asyncio.create_task(near.call("wait", None, dict))
    await far.waiting.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await far.cancelled.wait()
    assert await near.call("echo", 1, int) == 1


async def test_a_deadline_stops_the_work_and_names_the_wait(ends: Ends) -> None:
    near, _, far = ends
    with pytest.raises(DeadlineExceeded, match="far end didn't answer wait"):
        await near.call("wait", None, dict, timeout=0.05)
    async with asyncio.timeout(5):
        await far.cancelled.wait()


async def test_pending_calls_fail_when_the_other_end_goes(ends: Ends) -> None:
    near, far_end, far = ends
    call = asyncio.create_task(near.call("wait", None, dict))
    await far.waiting.wait()
    await far_end.close()
    with pytest.raises(ChannelClosed, match="far end is gone"):
        await call
    assert near.closed.is_set()
    with pytest.raises(ChannelClosed):
        await near.call("echo", 1, int)


async def test_a_write_that_waits_for_room_ends_with_the_channel() -> None:
    ours, theirs = socket.socketpair()
    near = Channel(ours, {}, "silent end")
    near.start()
    calls = [asyncio.create_task(near.call("echo", bytes(5_000_000), bytes)) for _ in range(3)]
    await until(lambda: bool(near._outbox), 5, "a write waits")
    await asyncio.sleep(0)
    theirs.close()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, ChannelClosed) for answer in answers), answers
    await near.close()


async def test_descriptors_that_wait_for_room_outlive_their_sender(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    near = Channel(ours, {}, "slow end")
    near.start()
    filling = asyncio.create_task(near.notify("fill", bytes(3_000_000)))
    (tmp_path / "file").write_bytes(b"what was meant")
    with (tmp_path / "file").open("rb") as file:
        waiting = asyncio.create_task(near.notify("file", None, fds=[file.fileno()]))
        await asyncio.sleep(0)
        waiting.cancel()
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(params: object, fds: list[int]) -> None:
        got.set_result(os.read(fds[0], 100))
        os.close(fds[0])

    async def drop(params: object, fds: list[int]) -> None:
        """It only filled the line."""

    far = Channel(theirs, {"fill": drop, "file": take}, "sender")
    far.start()
    async with asyncio.timeout(5):
        await filling
        assert await got == b"what was meant"
    await asyncio.gather(near.close(), far.close(), return_exceptions=True)


async def test_a_closed_channel_leaves_no_watch_on_its_descriptor(ends: Ends) -> None:
    near, far_end, _ = ends
    number = near._sock.fileno()
    await far_end.close()
    await near.closed.wait()
    ours, theirs = socket.socketpair()
    socks = [ours, theirs]
    while number not in [sock.fileno() for sock in socks] and len(socks) < 20:
        socks += socket.socketpair()
    again = next(sock for sock in socks if sock.fileno() == number)
    second = Channel(again, {}, "second")
    second.start()
    await asyncio.sleep(0)
    await second.close()
    for sock in socks:
        sock.close()


async def test_what_is_asked_in_one_turn_goes_as_one_message_and_is_answered_once_each() -> None:
    ours, theirs = socket.socketpair()
    turn, got = Turn(), list[Any]()
    near = Channel(ours, {}, "far end", turn)
    near.start()
    theirs.setblocking(True)
    try:
        with turn:
            for number in range(3):
                near.ask("step", {"at": number}, dict[str, int], lambda result, error: got.append((result, error)))
        assert near.waiting == 3
        asked = whole_message(theirs)
        assert [one["params"] for one in asked["several"]] == [{"at": 0}, {"at": 1}, {"at": 2}]
        ids = [one["id"] for one in asked["several"]]
        answers = [
            {"id": ids[1], "result": {"at": 1}},
            {"id": ids[0], "error": NotFound("gone").to_wire()},
            {"id": ids[2], "result": {"at": 2}},
        ]
        theirs.sendall(framed({"several": answers}))
        await until(lambda: len(got) == 3, 2.0, "all answers")
        assert [result for result, _error in got] == [{"at": 1}, None, {"at": 2}]
        assert isinstance(got[1][1], NotFound)
    finally:
        await near.close()
        theirs.close()


async def test_calls_of_one_turn_of_the_loop_go_together_and_in_order(ends: Ends) -> None:
    near, _far_end, _far = ends
    called = [near.call("echo", number, int, together=True, timeout=2.0) for number in range(300)]
    assert await asyncio.gather(*called) == list(range(300))
    first, second = near.call("echo", 1, int, together=True, timeout=2.0), near.call("echo", 2, int, timeout=2.0)
    assert await asyncio.gather(first, second) == [1, 2]


@pytest.mark.parametrize("wrong", [{"several": [{"several": [{"id": 1}]}]}, {"several": [{"id": 0}] * 257}, {"several": [3]}])
async def test_several_within_several_or_too_many_end_the_channel(wrong: dict[str, Any]) -> None:
    ours, theirs = socket.socketpair()
    near = Channel(ours, {}, "far end")
    near.start()
    theirs.sendall(framed(wrong))
    await asyncio.wait_for(near.closed.wait(), 2.0)
    await near.close()
    theirs.close()


def framed(message: dict[str, Any]) -> bytes:
    payload = pack(message)
    return len(payload).to_bytes(4, "big") + payload


def whole_message(sock: socket.socket) -> dict[str, Any]:
    size = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
    found: dict[str, Any] = unpack_plain(sock.recv(size, socket.MSG_WAITALL), "message")
    return found
