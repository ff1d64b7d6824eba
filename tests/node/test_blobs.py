"""Manifests and encodings between peers: what a liar sends is never taken, and the next peer is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.blobs import MAX_IDS, fetch_blobs, fetch_blobs_from_any
from node.network.interface import Stream
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, MfError, PeerFault, Unavailable
from protocol.framing import pack
from protocol.ids import digest
from protocol.messages import BLOB_PROTOCOL, BlobHead, BlobRequest, parse_reply, reply_frame
from tests.node.verb_fakes import VerbSwarm, verb_swarm
from tests.support.virtual_time import run_virtual

BLOB = b"manifest" * 100_000
NAME = digest(BLOB)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[VerbSwarm]:
    async with verb_swarm(3, tmp_path) as swarm:
        yield swarm


def answers(swarm: VerbSwarm, *frames: bytes) -> None:
    """The second node answers every request with these frames."""

    async def handle(stream: Stream) -> None:
        await stream.receive(5.0)
        for frame in frames:
            await stream.send(frame)
        await stream.receive(60.0)

    swarm.nodes[1].network.serve(BLOB_PROTOCOL, handle)


def head(length: int | None, name: bytes = NAME) -> bytes:
    return reply_frame(BlobHead(id=name, length=length))


async def test_large_and_empty_blobs_come_whole_and_what_isnt_held_is_left_out(three: VerbSwarm) -> None:
    asker, holder, _ = three.nodes
    empty = await holder.transfer.put_blob(b"")
    await holder.transfer.put_blob(BLOB)
    found = await fetch_blobs(asker.network, holder.peer, [bytes(32), NAME, empty])
    assert found == {NAME: BLOB, empty: b""}


async def test_more_ids_than_one_request_takes(three: VerbSwarm) -> None:
    asker, holder, _ = three.nodes
    names = [await holder.transfer.put_blob(str(number).encode()) for number in range(MAX_IDS + 3)]
    assert len(await fetch_blobs(asker.network, holder.peer, names)) == len(names)
    stream = await asker.network.open(holder.peer, BLOB_PROTOCOL)
    await stream.send(pack(BlobRequest(ids=names)))
    with pytest.raises(BadInput, match="at most 1024"):
        parse_reply(await stream.receive(2.0), BlobHead, "reply")


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([head(5), b"other"], "don't hash"),
        ([head(5, bytes(32))], "another blob"),
        ([head(4), b"toolong"], "more bytes"),
        ([head(limits.MAX_BLOB + 1)], "at most"),
        ([head(-1)], "at most"),
        ([b"nonsense"], "begins with"),
        ([b"\x00nonsense"], "msgpack"),
        ([b""], "begins with"),
    ],
)
async def test_a_liar_is_caught_and_the_next_peer_asked(three: VerbSwarm, frames: list[bytes], why: str) -> None:
    asker, liar, honest = three.nodes
    answers(three, *frames)
    with pytest.raises(MfError, match=why) as caught:
        await fetch_blobs(asker.network, liar.peer, [NAME])
    assert isinstance(caught.value, PeerFault | BadInput)
    await honest.transfer.put_blob(BLOB)
    assert await fetch_blobs_from_any(asker.network, [liar.peer, honest.peer], [NAME]) == {NAME: BLOB}


async def test_each_peer_gives_what_it_has(three: VerbSwarm) -> None:
    asker, one, other = three.nodes
    names = [await one.transfer.put_blob(b"1"), await other.transfer.put_blob(b"2")]
    assert await fetch_blobs_from_any(asker.network, [one.peer, other.peer], names) == {names[0]: b"1", names[1]: b"2"}


async def test_nobody_has_it_says_who_was_asked(three: VerbSwarm) -> None:
    asker, one, other = three.nodes
    with pytest.raises(Unavailable, match="1 of 1 records") as caught:
        await fetch_blobs_from_any(asker.network, [one.peer, other.peer], [NAME])
    assert caught.value.details == {"asked": [one.peer, other.peer], "missing": [NAME.hex()]}


async def test_no_peers_and_no_ids(three: VerbSwarm) -> None:
    assert await fetch_blobs_from_any(three.nodes[0].network, [], []) == {}
    with pytest.raises(Unavailable, match="0 peers"):
        await fetch_blobs_from_any(three.nodes[0].network, [], [NAME])


def test_one_who_drips_is_given_up_and_one_who_freezes_too(tmp_path: Path) -> None:
    async def drip(stream: Stream) -> None:
        await stream.receive(5.0)
        await stream.send(head(1_000_000))
        while True:
            await stream.send(b"x")
            await asyncio.sleep(1.0)

    async def main() -> None:
        async with verb_swarm(3, tmp_path) as swarm:
            asker, dripper, frozen = swarm.nodes
            dripper.network.serve(BLOB_PROTOCOL, drip)
            with pytest.raises(DeadlineExceeded, match="blob of 1000000 bytes"):
                await fetch_blobs(asker.network, dripper.peer, [NAME])
            swarm.hub.freeze(frozen.peer)
            with pytest.raises(DeadlineExceeded):
                await fetch_blobs(asker.network, frozen.peer, [NAME])

    run_virtual(main())
