"""A group fetched from holders that lie, stall, trickle, die or refuse: the right bytes, in time, and the right one blamed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.transfer.decoding import ThreadDecoding
from node.transfer.encode import encode_group
from node.transfer.fetch import fetch_group
from node.transfer.jobs import Encoded, EncodeGroup, Fetched, FetchGroup, SourceSpan
from node.transfer.sink import Sink
from node.transfer.sources import Connections
from node.transfer.staging import Staging
from protocol.errors import PeerFault, Unavailable
from protocol.signing import peer_of
from tests.node.transfer.holders import Holder, Node, certificate
from tests.support.wait import until

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OFFSET = 777
K, N = 3, 6


@dataclass
class Swarm:
    data: bytes
    encoded: Encoded
    staging: Staging
    tmp_path: Path
    executor: ThreadPoolExecutor
    connections: Connections
    holders: list[Holder]

    async def hold(self, *manners: str, after: int = 0, shards: list[int] | None = None) -> Node:
        """One holder per manner, of shards 0, 1, ... unless said otherwise."""
        context, tls = certificate(self.tmp_path)
        for shard, manner in zip(shards or range(len(manners)), manners, strict=True):
            content = self.staging.open(self.encoded.encoding, shard).path.read_bytes()
            holder = Holder(self.encoded.encoding, shard, content, manner, after if manner != "honest" else 0)
            await holder.start(context, tls)
            self.holders.append(holder)
        return Node(self.holders)

    async def fetch(self, node: Node) -> Fetched:
        job = FetchGroup(job="j", envelope=self.encoded.envelope, offset=OFFSET, sources=[holder.source for holder in self.holders])
        path = self.tmp_path / "out"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            result = await fetch_group(
                job, ThreadDecoding(job.envelope, Sink.whole(fd, OFFSET), self.executor), self.connections, node.callbacks
            )
        finally:
            os.close(fd)
        assert path.read_bytes()[OFFSET:] == self.data
        return result


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, "coding") as pool:
        yield pool


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory, executor: ThreadPoolExecutor) -> tuple[bytes, Encoded, Staging]:
    data = random.Random(9).randbytes(12_000_001)
    folder = tmp_path_factory.mktemp("coded")
    (folder / "data").write_bytes(data)
    staging = Staging(folder / "staging")
    job = EncodeGroup(
        model=bytes(32),
        group=0,
        group_id=bytes(32),
        length=len(data),
        spans=[SourceSpan(0, 0, len(data))],
        k=K,
        n=N,
        compression="raw",
        element=2,
    )
    fd = os.open(folder / "data", os.O_RDONLY)
    encoded = asyncio.run(encode_group(job, [fd], staging, KEY, executor))
    os.close(fd)
    return data, encoded, staging


@pytest.fixture
async def swarm(coded: tuple[bytes, Encoded, Staging], tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[Swarm]:
    made = Swarm(*coded, tmp_path, executor, Connections(), [])
    yield made
    await made.connections.close()
    for holder in made.holders:
        await holder.stop()


async def test_the_data_shards_alone_are_read(swarm: Swarm) -> None:
    node = await swarm.hold(*["honest"] * N)
    result = await swarm.fetch(node)
    assert result.asked == sorted(holder.peer for holder in swarm.holders[:K])
    assert sum(holder.asked for holder in swarm.holders) == K
    assert len(swarm.data) < result.bytes < 1.01 * len(swarm.data)
    assert set(result.speeds) == set(result.asked)
    assert node.faults == []


async def test_any_k_shards_do(swarm: Swarm) -> None:
    node = await swarm.hold(*["honest"] * K, shards=[1, 4, 5])
    await swarm.fetch(node)


@pytest.mark.parametrize("after", [0, 2])
async def test_liars_are_set_aside_with_signed_evidence(swarm: Swarm, after: int) -> None:
    node = await swarm.hold("honest", "lies", "lies", "honest", "honest", after=after)
    await swarm.fetch(node)
    assert sorted(shard for _, shard, _ in node.faults) == [1, 2]
    for peer, shard, evidence in node.faults:
        assert peer == swarm.holders[shard].peer
        assert evidence is not None
        assert evidence.signed
        assert evidence.first == 16 * after


async def test_a_wrong_leaf_list_is_a_fault_too(swarm: Swarm) -> None:
    node = await swarm.hold("lies_in_list", "honest", "honest", "honest")
    await swarm.fetch(node)
    assert [(shard, evidence) for _, shard, evidence in node.faults] == [(0, None)]


async def test_who_was_overtaken_is_asked_last_for_what_follows(swarm: Swarm) -> None:
    node = await swarm.hold("trickles", *["honest"] * (N - 1), after=1)
    slow = swarm.holders[0].peer
    assert slow in (await swarm.fetch(node)).asked
    assert slow not in (await swarm.fetch(node)).asked
    swarm.connections.lagging._until[slow] = 0.0
    assert slow in (await swarm.fetch(node)).asked, "not for ever"


@pytest.mark.parametrize("manner", ["mute", "stalls", "trickles"])
@pytest.mark.parametrize("after", [0, 1])
async def test_the_slow_cost_little_time_and_no_blame(swarm: Swarm, manner: str, after: int) -> None:
    node = await swarm.hold("honest", manner, "honest", "honest", after=after)
    began = time.monotonic()
    await swarm.fetch(node)
    assert time.monotonic() - began < 3 * 2
    assert node.faults == []
    assert swarm.holders[3].asked == 1


async def test_all_spares_may_be_needed(swarm: Swarm) -> None:
    node = await swarm.hold("dies", "stalls", "lies", "honest", "honest", "honest", after=1)
    await swarm.fetch(node)
    assert [shard for _, shard, _ in node.faults] == [2]


async def test_one_connection_that_breaks_is_taken_up_again_where_nobody_else_has_it(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "dies", "honest", after=2)
    await swarm.fetch(node)
    assert swarm.holders[1].asked > 1


async def test_refusers_are_replaced(swarm: Swarm) -> None:
    node = await swarm.hold("refuses", "no grant", "honest", "honest", "honest")
    await swarm.fetch(node)


async def test_another_certificate_isnt_trusted(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "honest", "honest", "honest")
    swarm.holders[0].tls = bytes(32)
    await swarm.fetch(node)
    assert swarm.holders[0].asked == 0


async def test_too_few_says_how_many_and_who_was_asked(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "refuses", "lies", "no grant")
    with pytest.raises(Unavailable, match=r"[12] of the 3 shards needed are missing") as caught:
        await swarm.fetch(node)
    # two refuse and one lies: it ends as soon as that many are known to be of no use that k can't be had
    assert caught.value.details["missing"] in (1, 2)
    assert set(caught.value.details["asked"]) <= {holder.peer for holder in swarm.holders}
    assert swarm.holders[1].peer in caught.value.message or swarm.holders[3].peer in caught.value.message


async def test_nobody_to_ask(swarm: Swarm) -> None:
    with pytest.raises(Unavailable, match="3 of the 3"):
        await swarm.fetch(await swarm.hold())


async def test_cancelled_in_the_middle_leaves_no_task(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "stalls", "honest", after=1)
    before = asyncio.all_tasks()
    task = asyncio.create_task(swarm.fetch(node))
    await until(lambda: any(holder.asked for holder in swarm.holders), 10, "a holder is asked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    names = {left.get_name() for left in asyncio.all_tasks() - before}
    assert not any(name.startswith(("shard", "assembling", "grant")) for name in names)


async def test_an_encoding_that_doesnt_decode_blames_its_signer(swarm: Swarm) -> None:
    from protocol.encoding import Segment, encoding_id, parse_encoding, seal_encoding

    _, record = parse_encoding(swarm.encoded.envelope)
    record.segments[0] = Segment(record.segments[0].plain, record.segments[0].coded, bytes(32))
    node = await swarm.hold("honest", "honest", "honest")
    envelope = seal_encoding(KEY, record)
    for holder in swarm.holders:
        holder.encoding = encoding_id(envelope)
    swarm.encoded = Encoded(envelope=envelope, encoding=encoding_id(envelope), shard_bytes=0, stored_bytes=0)
    with pytest.raises(PeerFault, match=peer_of(KEY)):
        await swarm.fetch(node)
