"""Peers that break the rules on the stream: cut off, named, and the node goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from node.network.interface import Stream, StreamClosed
from node.swarm.archive import BUCKETS
from node.swarm.book import MARK
from node.swarm.wire import Batch, Frame, Hello, Marks, Nothing, Probe, Summary, body_of, decode, encode, prove, proves
from protocol.errors import BadInput, DeadlineExceeded
from protocol.framing import pack
from protocol.ids import PeerId
from protocol.messages import SWARM_PROTOCOL
from protocol.records import seal_record
from tests.node.swarm.nodes import Node, Nodes, card, key_of, routable
from tests.node.swarm.test_books import hostile, node_record
from tests.support.wait import until

HELLO = encode(1, "hello", Hello(boot=bytes(16), version="x", proofs=[]))


async def stream_to(nodes: Nodes, target: Node, greet: bool = True) -> tuple[Node, Stream]:
    other = await nodes.node()
    await other.network.dial(target.peer, target.network.addresses())
    stream = await other.network.open(target.peer, SWARM_PROTOCOL)
    if greet:
        await stream.send(HELLO)
        assert decode(await stream.receive(2)).kind == "reply"
    return other, stream


async def ended(stream: Stream) -> bool:
    try:
        while True:
            await stream.receive(3)
    except StreamClosed:
        return True
    except DeadlineExceeded:
        return False


async def flood(stream: Stream, frames: list[bytes]) -> None:
    with contextlib.suppress(StreamClosed):
        for frame in frames:
            await stream.send(frame)


NONSENSE = {
    "noise": b"\xc1\xff\x00" * 9,
    "no map": pack([1, 2]),
    "a kind that isn't text": pack({"id": 1, "kind": 3, "body": {}}),
    "a negative id": pack({"id": -1, "kind": "ping", "body": {}}),
    "a critical field": pack({"id": 1, "kind": "ping", "body": {}, "!new": 1}),
    "a push that isn't a list": pack({"id": 0, "kind": "push", "body": {"records": 7}}),
    "too many records": encode(0, "push", Batch(records=[b"x"] * 513)),
    "sums too short": encode(2, "summary", Summary(sums=b"x")),
    "half a mark": encode(2, "fetch", Marks(marks=b"x")),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_ends_the_stream_and_nothing_else(name: str) -> None:
    async with Nodes() as nodes:
        node = await nodes.node()
        _other, stream = await stream_to(nodes, node)
        await stream.send(NONSENSE[name])
        assert await ended(stream)
        newcomer = await nodes.node()
        assert await newcomer.membership.join(node.membership.ticket()) == 1


async def test_nothing_is_answered_before_hello() -> None:
    async with Nodes() as nodes:
        node = await nodes.node()
        _other, stream = await stream_to(nodes, node, greet=False)
        await stream.send(encode(1, "ping", Nothing()))
        assert await ended(stream)


async def test_an_unknown_question_is_refused_and_the_stream_stays() -> None:
    async with Nodes() as nodes:
        node = await nodes.node()
        _other, stream = await stream_to(nodes, node)
        await stream.send(encode(7, "later", Nothing()))
        assert decode(await stream.receive(2)).kind == "refused"
        await stream.send(encode(8, "ping", Nothing()))
        assert decode(await stream.receive(2)).id == 8


async def test_bad_records_in_a_push_are_refused_one_by_one_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Nodes() as nodes:
        node = await nodes.node()
        other, stream = await stream_to(nodes, node)
        good = seal_record(key_of(77), card("fine", expires=int(node.membership._now()) + 60))
        bad = [data for data in hostile().values() if len(data) < 100_000]
        await stream.send(encode(0, "push", Batch(records=[*bad, good])))
        await until(lambda: bool(node.membership.cards()), 3, "the good one is kept")
        assert [view.card.name for view in node.membership.cards()] == ["fine"]
        refused = [r for r in caplog.records if getattr(r, "event", "") == "record_refused"]
        assert len(refused) == len(bad)
        assert {r.fields["peer"] for r in refused} == {other.peer}  # type: ignore[attr-defined]


async def test_a_flood_of_questions_and_of_records_is_cut_off() -> None:
    async with Nodes() as nodes:
        node = await nodes.node()
        _other, stream = await stream_to(nodes, node)
        await flood(stream, [encode(number, "ping", Nothing()) for number in range(2, 2_000)])
        assert await ended(stream)
        _other, stream = await stream_to(nodes, node)
        await flood(stream, [encode(0, "push", Batch(records=[b"%d %d" % (n, i) for i in range(500)])) for n in range(40)])
        assert await ended(stream)
        assert len(node.membership._archive.all_marks()) <= 8


async def test_an_address_is_not_passed_on_before_a_handshake_with_its_peer() -> None:
    async with Nodes() as nodes:
        node, witness = await nodes.swarm(2)
        _other, stream = await stream_to(nodes, node)
        lie = node_record(expires=int(node.membership._now()) + 60, address="/ip4/127.9.9.9/tcp/1")
        envelope = seal_record(key_of(88), lie)
        await stream.send(encode(0, "push", Batch(records=[envelope])))
        await until(lambda: node.membership._archive.knows(envelope), 3, "kept")
        await stream.send(encode(5, "summary", Summary(sums=bytes(BUCKETS * MARK))))
        while (frame := decode(await stream.receive(3))).id != 5:
            continue
        from node.swarm.book import mark_of

        assert mark_of(envelope) not in body_of(frame, Marks).marks
        await asyncio.sleep(40)
        assert not witness.membership._archive.knows(envelope)


async def test_a_probe_of_a_stranger_says_nothing_and_of_a_neighbour_that_it_lives() -> None:
    async with Nodes() as nodes:
        node, neighbour = await nodes.swarm(2)
        _other, stream = await stream_to(nodes, node)
        await stream.send(encode(2, "probe", Probe(peer="nobody")))
        assert decode(await stream.receive(2)).body == {}
        await stream.send(encode(3, "probe", Probe(peer=neighbour.peer)))
        assert decode(await stream.receive(2)).body == {"alive": True}
        nodes.hub.freeze(neighbour.peer)
        await stream.send(encode(4, "probe", Probe(peer=neighbour.peer)))
        assert decode(await stream.receive(2)).body == {"alive": False}


async def test_a_peer_that_serves_no_swarm_protocol_is_never_routable() -> None:
    async with Nodes() as nodes:
        node = await nodes.node()
        mute = await nodes.node()
        mute.network._handlers.clear()
        await node.network.dial(mute.peer, mute.network.addresses())
        await asyncio.sleep(5)
        assert mute.peer not in routable(node)


def test_a_proof_convinces_its_verifier_alone() -> None:
    secret, a, b, c = b"s" * 32, PeerId("A"), PeerId("B"), PeerId("C")
    proof = prove(secret, a, b)
    assert proves([b"t" * 32, secret], [proof], a, b)
    assert not proves([secret], [proof], a, c)
    assert not proves([secret], [proof], c, b)
    assert not proves([secret], [proof], b, a)
    assert not proves([b"t" * 32], [proof], a, b)
    assert not proves([secret], [], a, b)


def test_bodies_are_bounded() -> None:
    for body, kind in (
        ({"boot": b"x", "version": "1", "proofs": []}, Hello),
        ({"boot": bytes(16), "version": "1", "proofs": [b""] * 9}, Hello),
        ({"marks": bytes(MARK * 32_769)}, Marks),
    ):
        with pytest.raises(BadInput):
            body_of(Frame(id=1, kind="x", body=body), kind)
