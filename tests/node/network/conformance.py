"""What every implementation of `Network` owes. A test class inherits `NetworkConformance` and gives the fixture `pair`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from node.network.interface import Network, Stream, StreamClosed
from protocol.errors import BadInput, DeadlineExceeded, PeerFault, Unavailable
from protocol.framing import encode_varint
from protocol.ids import PeerId, peer_from_public
from protocol.limits import MAX_FRAME, MIB
from protocol.messages import STEP_PROTOCOL
from tests.support.wait import until

ECHO, SILENT, BROKEN, KEEP, BYE = "/test/echo/1", "/test/silent/1", "/test/broken/1", "/test/keep/1", "/test/bye/1"


class Pair:
    """Two networks, `b` serving a few protocols, `a` having dialled it."""

    def __init__(self, a: Network, b: Network) -> None:
        self.a, self.b = a, b
        self.events: list[tuple[str, PeerId, bool]] = []
        self.kept: list[Stream] = []
        for name, network in (("a", a), ("b", b)):
            network.listen_peers(lambda peer, up, name=name: self.events.append((name, peer, up)))  # type: ignore[misc]
        for protocol, handler in self._handlers().items():
            b.serve(protocol, handler)

    def _handlers(self) -> dict[str, Callable[[Stream], Awaitable[None]]]:
        async def echo(stream: Stream) -> None:
            while True:
                await stream.send(await stream.receive(10))

        async def silent(stream: Stream) -> None:
            await stream.receive(10)

        async def broken(stream: Stream) -> None:
            await stream.receive(10)
            raise ValueError("a fault of the handler")

        async def keep(stream: Stream) -> None:
            self.kept.append(stream)
            await asyncio.Event().wait()

        async def bye(stream: Stream) -> None:
            await stream.send(b"one")
            await stream.send(b"two")

        return {ECHO: echo, STEP_PROTOCOL: echo, SILENT: silent, BROKEN: broken, KEEP: keep, BYE: bye}

    async def start(self) -> None:
        await self.a.start()
        await self.b.start()
        await self.a.dial(self.b.peer_id, self.b.addresses())

    async def stop(self) -> None:
        await self.a.stop()
        await self.b.stop()

    async def kept_stream(self) -> tuple[Stream, Stream]:
        stream = await self.a.open(self.b.peer_id, KEEP)
        await until(lambda: bool(self.kept), 3, "the other end of the stream")
        return stream, self.kept.pop()


class NetworkConformance:
    async def test_frames_come_back_in_order_and_the_peer_is_authentic(self, pair: Pair) -> None:
        stream = await pair.a.open(pair.b.peer_id, ECHO)
        assert (stream.peer, stream.protocol) == (pair.b.peer_id, ECHO)
        for number in range(20):
            await stream.send(b"%d" % number)
        assert [await stream.receive(3) for _ in range(20)] == [b"%d" % number for number in range(20)]
        near, far = await pair.kept_stream()
        assert (near.peer, far.peer) == (pair.b.peer_id, pair.a.peer_id)

    async def test_frames_of_every_size_up_to_the_limit_pass(self, pair: Pair) -> None:
        stream = await pair.a.open(pair.b.peer_id, ECHO)
        for size in (0, 1, 127, 128, 65_536, MAX_FRAME):
            payload = bytes(size)
            await stream.send(payload)
            assert await stream.receive(5) == payload
        step = await pair.a.open(pair.b.peer_id, STEP_PROTOCOL)
        await step.send(bytes(4 * MIB))
        assert len(await step.receive(10)) == 4 * MIB

    async def test_a_frame_one_over_the_limit_isnt_sent_and_resets_when_it_comes(self, pair: Pair) -> None:
        near, far = await pair.kept_stream()
        with pytest.raises(BadInput, match="1048577"):
            await near.send(bytes(MAX_FRAME + 1))
        near.wire.write(encode_varint(MAX_FRAME + 1))  # type: ignore[attr-defined]
        with pytest.raises(PeerFault, match=str(pair.a.peer_id)):
            await far.receive(3)
        with pytest.raises(StreamClosed):
            await near.receive(3)

    async def test_a_queue_nobody_reads_is_bounded_and_names_the_peer(self, pair: Pair) -> None:
        near, far = await pair.kept_stream()
        with suppress(Unavailable):
            for _ in range(16):
                await near.send(bytes(MAX_FRAME))
        with pytest.raises(StreamClosed):
            await near.receive(5)
        with pytest.raises(PeerFault, match="queue is full"):  # noqa: PT012
            while True:
                await far.receive(3)

    async def test_a_silent_peer_ends_in_a_deadline_that_names_it(self, pair: Pair) -> None:
        stream = await pair.a.open(pair.b.peer_id, SILENT)
        with pytest.raises(DeadlineExceeded, match=str(pair.b.peer_id)):
            await stream.receive(0.1)
        await stream.send(b"the stream still stands")

    async def test_a_reset_ends_both_sides_waits(self, pair: Pair) -> None:
        near, far = await pair.kept_stream()
        waiting = asyncio.create_task(near.receive(5))
        far_waiting = asyncio.create_task(far.receive(5))
        await asyncio.sleep(0)
        near.reset()
        for wait in (waiting, far_waiting):
            with pytest.raises(StreamClosed):
                await wait
        with pytest.raises(StreamClosed):
            await near.send(b"late")

    async def test_close_lets_the_frames_before_it_through(self, pair: Pair) -> None:
        stream = await pair.a.open(pair.b.peer_id, BYE)
        assert [await stream.receive(3), await stream.receive(3)] == [b"one", b"two"]
        with pytest.raises(StreamClosed):
            await stream.receive(3)
        await stream.close()
        await stream.close()

    async def test_a_closed_side_still_hears(self, pair: Pair) -> None:
        near, far = await pair.kept_stream()
        await near.send(b"a question")
        await near.close()
        assert await far.receive(3) == b"a question"
        with pytest.raises(StreamClosed):
            await far.receive(3)
        await far.send(b"an answer")
        assert await near.receive(3) == b"an answer"
        with pytest.raises(StreamClosed):
            await near.send(b"after the end")

    async def test_many_streams_side_by_side(self, pair: Pair) -> None:
        async def one(number: int) -> None:
            stream = await pair.a.open(pair.b.peer_id, ECHO, timeout=10)
            await stream.send(b"%d" % number)
            assert await stream.receive(10) == b"%d" % number
            await stream.close()

        for _ in range(3):
            await asyncio.gather(*(one(number) for number in range(60)))

    async def test_a_handler_that_raises_resets_its_stream_alone(self, pair: Pair) -> None:
        healthy = await pair.a.open(pair.b.peer_id, ECHO)
        stream = await pair.a.open(pair.b.peer_id, BROKEN)
        await stream.send(b"go")
        with pytest.raises(StreamClosed):
            await stream.receive(3)
        await healthy.send(b"still here")
        assert await healthy.receive(3) == b"still here"

    async def test_a_cancelled_send_or_receive_leaves_the_connection_working(self, pair: Pair) -> None:
        stream, _ = await pair.kept_stream()
        tasks = [asyncio.create_task(stream.send(bytes(MAX_FRAME))), asyncio.create_task(stream.receive(5))]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        other = await pair.a.open(pair.b.peer_id, ECHO)
        await other.send(b"works")
        assert await other.receive(3) == b"works"

    async def test_an_unknown_peer_address_or_protocol_is_said(self, pair: Pair) -> None:
        stranger = peer_from_public(bytes(31) + b"\x01")
        with pytest.raises(Unavailable, match=str(stranger)):
            await pair.a.open(stranger, ECHO)
        with pytest.raises(Unavailable) as caught:
            await pair.a.dial(stranger, ["/ip4/127.0.0.1/tcp/1"], timeout=1)
        assert "/ip4/127.0.0.1/tcp/1" in str(caught.value.details)
        with pytest.raises(Unavailable, match="/test/unheard/1"):
            await pair.a.open(pair.b.peer_id, "/test/unheard/1")

    async def test_another_peers_address_doesnt_give_its_name(self, pair: Pair) -> None:
        stranger = peer_from_public(bytes(31) + b"\x02")
        with pytest.raises(Unavailable):
            await pair.a.dial(stranger, pair.b.addresses(), timeout=2)
        assert stranger not in pair.a.connected()

    async def test_a_failed_dial_doesnt_bar_the_next(self, pair: Pair) -> None:
        await pair.a.disconnect(pair.b.peer_id)
        await until(lambda: not pair.a.connected(), 3, "disconnected")
        with pytest.raises(Unavailable):
            await pair.a.dial(pair.b.peer_id, ["/ip4/127.0.0.1/tcp/1"], timeout=1)
        await pair.a.dial(pair.b.peer_id, ["/ip4/127.0.0.1/tcp/1", *pair.b.addresses()], timeout=3)
        assert pair.a.connected() == [pair.b.peer_id]

    async def test_listeners_hear_of_the_first_and_the_last_connection(self, pair: Pair) -> None:
        await until(lambda: ("b", pair.a.peer_id, True) in pair.events, 3, "b hears of a")
        await pair.a.dial(pair.b.peer_id, pair.b.addresses())
        assert pair.events.count(("a", pair.b.peer_id, True)) == 1
        await pair.a.disconnect(pair.b.peer_id)
        await until(lambda: {("a", pair.b.peer_id, False), ("b", pair.a.peer_id, False)} <= set(pair.events), 3, "both hear the end")
        assert pair.a.connected() == pair.b.connected() == []

    async def test_stop_is_quick_with_open_streams_and_the_others_notice(self, pair: Pair) -> None:
        near, _ = await pair.kept_stream()
        loop = asyncio.get_running_loop()
        before = loop.time()
        await pair.b.stop()
        assert loop.time() - before < 2
        with pytest.raises(StreamClosed):
            await near.receive(3)
        await until(lambda: pair.a.connected() == [], 3, "a notices that b is gone")
