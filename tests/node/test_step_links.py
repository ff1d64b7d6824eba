"""Connections for step frames: sealed, in order, for whoever asked over the network and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.interface import StreamClosed
from node.network.memory import MemoryHub, MemoryNetwork
from node.step_links import KEY, NAME, Link, LinkServer, dial_link
from protocol import limits
from protocol.errors import MfError, PeerFault, Unavailable
from protocol.framing import pack
from protocol.ids import PeerId
from protocol.messages import DIRECT_PROTOCOL, DirectReply, DirectRequest, StepHead, parse_reply, reply_frame, step_frame
from tests.support.wait import until


class Local(MemoryNetwork):
    """Peers on the in-memory network whose connections lead to this machine."""

    def host_of(self, peer: PeerId) -> str | None:
        return "127.0.0.1"


@dataclass
class Pair:
    mine: Local
    theirs: Local
    server: LinkServer
    got: list[tuple[PeerId, bytes]] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def take(self, peer: PeerId, frame: bytes | memoryview) -> None:
        if bytes(frame) == b"refuse":
            raise PeerFault("not a step")
        self.got.append((peer, bytes(frame)))


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    hub = MemoryHub(3, delay=(0.0, 0.001), stall=0.0)
    mine, theirs = Local(hub, Ed25519PrivateKey.generate()), Local(hub, Ed25519PrivateKey.generate())
    made = Pair(mine, theirs, LinkServer(lambda peer, frame: made.take(peer, frame)))
    theirs.serve(DIRECT_PROTOCOL, made.server.handle)
    for network in (mine, theirs):
        await network.start()
    await mine.dial(theirs.peer_id, theirs.addresses())
    await made.server.start("127.0.0.1", 0)
    yield made
    await made.server.stop()
    for network in (mine, theirs):
        await network.stop()


async def raw(pair: Pair, data: bytes) -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.server.port)
    writer.write(data)
    pair.writers.append(writer)  # asyncio would close one that nobody keeps
    return reader


async def told(pair: Pair) -> DirectReply:
    """A place asked for and not used."""
    stream = await pair.mine.open(pair.theirs.peer_id, DIRECT_PROTOCOL)
    await stream.send(pack(DirectRequest()))
    return parse_reply(await stream.receive(2.0), DirectReply, "place")


async def test_frames_of_all_sizes_arrive_in_order_from_whom_they_are(pair: Pair) -> None:
    link = await dial_link(pair.mine, pair.theirs.peer_id)
    sent = [bytes([size % 251]) * size for size in (1, 40, 1_200, 70_000, 3, 1 << 20, 5)]
    for frame in sent:
        link.write(frame)
        await link.drained(5.0)
    await until(lambda: len(pair.got) == len(sent), 5.0, "all frames")
    assert pair.got == [(pair.mine.peer_id, frame) for frame in sent]
    link.close()
    with pytest.raises(StreamClosed):
        link.write(b"x")


async def test_a_name_is_good_once(pair: Pair) -> None:
    place = await told(pair)
    first = await raw(pair, place.name)
    second = await raw(pair, place.name)
    assert await asyncio.wait_for(second.read(), 5.0) == b""
    assert not first.at_eof()


@pytest.mark.parametrize(
    "after", [(20).to_bytes(4, "big") + bytes(20), (3).to_bytes(4, "big"), (limits.MAX_ACTIVATION_FRAME + 17).to_bytes(4, "big")]
)
async def test_what_isnt_sealed_ends_the_connection(pair: Pair, after: bytes) -> None:
    place = await told(pair)
    reader = await raw(pair, place.name + after)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5.0)
    assert not pair.got


async def test_a_stranger_without_a_name_gets_nowhere(pair: Pair) -> None:
    reader = await raw(pair, bytes(NAME) + bytes(100))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5.0)


async def test_a_frame_sent_twice_isnt_taken_twice(pair: Pair) -> None:
    """Who copies sealed frames off the wire can't play them again: the nonce is the frame's number."""
    link = await dial_link(pair.mine, pair.theirs.peer_id)
    wire: list[bytes] = []
    assert link._transport is not None
    ordinary = link._transport.write
    link._transport.write = lambda data: (wire.append(bytes(data)), ordinary(data))[1]  # type: ignore[method-assign]
    link.write(b"one")
    await until(lambda: len(pair.got) == 1, 5.0, "the frame")
    ordinary(wire[0])
    await until(lambda: link.closed, 5.0, "the connection's end")
    assert len(pair.got) == 1


async def test_a_frame_that_isnt_a_step_ends_the_connection(pair: Pair) -> None:
    link = await dial_link(pair.mine, pair.theirs.peer_id)
    link.write(b"refuse")
    await until(lambda: link.closed, 5.0, "the connection's end")


@pytest.mark.parametrize("reply", [{"port": 0}, {"port": 70_000}, {"name": b"x"}, {"key": b"x"}])
async def test_a_place_that_cant_be_is_refused(pair: Pair, reply: dict[str, object]) -> None:
    fields = {"port": pair.server.port, "name": bytes(NAME), "key": bytes(KEY)} | reply

    async def handle(stream: object) -> None:
        await stream.receive(2.0)  # type: ignore[attr-defined]
        await stream.send(reply_frame(DirectReply(**fields)))  # type: ignore[attr-defined, arg-type]

    pair.theirs.serve(DIRECT_PROTOCOL, handle)
    with pytest.raises(PeerFault):
        await dial_link(pair.mine, pair.theirs.peer_id)


async def test_a_peer_that_takes_nothing_directly_is_said_so(pair: Pair) -> None:
    await pair.server.stop()
    with pytest.raises(Unavailable):
        await dial_link(pair.mine, pair.theirs.peer_id, 1.0)
    hub = MemoryHub(4)
    with pytest.raises(MfError):
        await dial_link(MemoryNetwork(hub, Ed25519PrivateKey.generate()), pair.theirs.peer_id)


async def test_a_taken_port_is_no_fault(pair: Pair) -> None:
    other = LinkServer(pair.take)
    await other.start("127.0.0.1", pair.server.port)
    assert other.port not in (0, pair.server.port)
    await other.stop()


def test_a_frame_over_the_limit_isnt_sent() -> None:
    head = StepHead(session=bytes(16), epoch=0, position=0, kind="tokens")
    assert len(step_frame(head, b"")) < 200
    link = Link(PeerId("x"), bytes(KEY))
    with pytest.raises(StreamClosed):
        link.write(b"x")
