"""Request and reply over kept streams: a stale one is replaced once, a late reply never answers the next request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.local_stream import stream_pair
from node.network.interface import Stream, StreamClosed
from node.network.memory import MemoryHub, MemoryNetwork
from node.streams import StreamPool
from protocol.errors import DeadlineExceeded
from protocol.ids import PeerId
from tests.support.virtual_time import run_virtual

ECHO = "/mf/echo/1"


class Echo:
    """Answers each frame; `silent` keeps the answers until it is set."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.ready = asyncio.Event()
        self.ready.set()

    async def handle(self, stream: Stream) -> None:
        self.streams.append(stream)
        while True:
            frame = await stream.receive(60.0)
            await self.ready.wait()
            await stream.send(b"echo " + frame)


async def pair(hub: MemoryHub) -> tuple[MemoryNetwork, MemoryNetwork, Echo]:
    one, other = (MemoryNetwork(hub, Ed25519PrivateKey.generate()) for _ in range(2))
    echo = Echo()
    other.serve(ECHO, echo.handle)
    for network in (one, other):
        await network.start()
    await one.dial(other.peer_id, other.addresses())
    return one, other, echo


@pytest.fixture
async def echoing() -> AsyncIterator[tuple[StreamPool, MemoryNetwork, Echo]]:
    one, other, echo = await pair(MemoryHub(3, delay=(0.0, 0.001), stall=0.0))
    pool = StreamPool(one, ECHO)
    yield pool, other, echo
    await pool.close()
    for network in (one, other):
        await network.stop()


async def test_one_stream_serves_all_askers_in_turn(echoing: tuple[StreamPool, MemoryNetwork, Echo]) -> None:
    pool, other, echo = echoing
    asked = [str(number).encode() for number in range(5)]
    assert await asyncio.gather(*(pool.ask(other.peer_id, frame, 2.0) for frame in asked)) == [b"echo " + frame for frame in asked]
    assert len(echo.streams) == 1


async def test_a_stale_stream_is_replaced_once(echoing: tuple[StreamPool, MemoryNetwork, Echo]) -> None:
    pool, other, echo = echoing
    await pool.ask(other.peer_id, b"1", 2.0)
    echo.streams[0].reset()
    assert await pool.ask(other.peer_id, b"2", 2.0) == b"echo 2"
    assert len(echo.streams) == 2


async def test_a_fresh_stream_that_ends_is_the_peers_answer(echoing: tuple[StreamPool, MemoryNetwork, Echo]) -> None:
    pool, other, _echo = echoing
    opened = 0

    async def rude(stream: Stream) -> None:
        nonlocal opened
        opened += 1
        stream.reset()

    other.serve(ECHO, rude)
    with pytest.raises(StreamClosed):
        await pool.ask(other.peer_id, b"1", 2.0)
    assert opened == 1


def test_who_queued_in_vain_doesnt_take_the_stream_from_the_one_served() -> None:
    async def main() -> None:
        one, other, echo = await pair(MemoryHub(3, delay=(0.0, 0.001), stall=0.0))
        pool = StreamPool(one, ECHO)
        echo.ready.clear()
        served = asyncio.create_task(pool.ask(other.peer_id, b"slow", 9.0))
        await asyncio.sleep(0.1)
        with pytest.raises(DeadlineExceeded):
            await pool.ask(other.peer_id, b"queued", 1.0)
        echo.ready.set()
        assert await served == b"echo slow"
        assert len(echo.streams) == 1

    run_virtual(main())


def test_a_late_reply_never_answers_the_next_request() -> None:
    async def main() -> None:
        one, other, echo = await pair(MemoryHub(3, delay=(0.0, 0.001), stall=0.0))
        pool = StreamPool(one, ECHO)
        echo.ready.clear()
        with pytest.raises(DeadlineExceeded, match=r"within 1\.0 s"):
            await pool.ask(other.peer_id, b"first", 1.0)
        echo.ready.set()
        assert await pool.ask(other.peer_id, b"second", 1.0) == b"echo second"

    run_virtual(main())


def test_an_own_stage_that_takes_nothing_doesnt_hold_its_sender_for_ever() -> None:
    async def main() -> None:
        mine, theirs = stream_pair(PeerId("me"), ECHO)
        for _ in range(256):
            await mine.send(b"x", 1.0)
        with pytest.raises(DeadlineExceeded):
            await mine.send(b"x", 1.0)
        mine.reset()
        assert [await theirs.receive(1.0) for _ in range(255)] == [b"x"] * 255
        with pytest.raises(StreamClosed):
            await theirs.receive(1.0)
        with pytest.raises(StreamClosed):
            await theirs.receive(1.0)
        with pytest.raises(StreamClosed):
            await theirs.send(b"x")

    run_virtual(main())


async def test_a_pair_carries_both_ways_and_its_end_is_seen() -> None:
    mine, theirs = stream_pair(PeerId("me"), ECHO)
    await mine.send(b"there")
    await theirs.send(b"back")
    assert (await theirs.receive(1.0), await mine.receive(1.0)) == (b"there", b"back")
    await theirs.close()
    with pytest.raises(StreamClosed):
        await mine.receive(1.0)
