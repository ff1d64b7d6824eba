"""Missing shards made anew from others: the bytes their signer committed to, or nothing."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.transfer.encode import encode_group
from node.transfer.jobs import Encoded, EncodeGroup, RebuildShards, SourceSpan
from node.transfer.rebuild import rebuild_shards
from node.transfer.sources import Connections
from node.transfer.staging import Staging
from protocol.encoding import encoding_id, parse_encoding, seal_encoding, shard_root
from protocol.errors import BadInput, Conflict, PeerFault, Unavailable
from tests.node.transfer.holders import Node
from tests.node.transfer.test_fetch import Swarm
from tests.support.wait import until

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
K, N, ROOTS = 3, 6, 12


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, "coding") as pool:
        yield pool


@pytest.fixture(scope="module", params=[5_000_001, 3])
def coded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, executor: ThreadPoolExecutor
) -> tuple[bytes, Encoded, Staging]:
    data = random.Random(9).randbytes(request.param)
    folder = tmp_path_factory.mktemp("coded")
    (folder / "data").write_bytes(data)
    staging = Staging(folder / "staging")
    spans = [SourceSpan(0, 0, len(data))]
    job = EncodeGroup(
        model=bytes(32), group=0, group_id=bytes(32), length=len(data), spans=spans, k=K, n=N, compression="zstd", element=1, n_max=ROOTS
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


async def rebuild(swarm: Swarm, node: Node, make: list[int], envelope: bytes | None = None) -> Staging:
    staging = Staging(swarm.tmp_path / "staging")
    job = RebuildShards(
        job="j", envelope=envelope or swarm.encoded.envelope, sources=[holder.source for holder in swarm.holders], make=make
    )
    await rebuild_shards(job, staging, swarm.connections, node.callbacks, swarm.executor)
    return staging


async def test_several_columns_come_from_one_read_of_k(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "honest", "honest", shards=[1, 4, 5])
    staging = await rebuild(swarm, node, [0, 3, 9, 11])
    assert sum(holder.asked for holder in swarm.holders) == K
    roots = parse_encoding(swarm.encoded.envelope)[1].roots
    for shard in (0, 3):
        assert (
            staging.open(swarm.encoded.encoding, shard).path.read_bytes()
            == swarm.staging.open(swarm.encoded.encoding, shard).path.read_bytes()
        )
    for shard in (0, 3, 9, 11):
        staged = staging.open(swarm.encoded.encoding, shard)
        assert shard_root(staged.length, staged.leaves) == roots[shard]


async def test_the_group_is_read_from_what_was_made(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "honest", "honest", shards=[0, 1, 2])
    made = await rebuild(swarm, node, [7, 8, 10])
    for holder in swarm.holders:
        await holder.stop()
    swarm.holders.clear()
    swarm.staging = made
    await swarm.fetch(await swarm.hold("honest", "honest", "honest", shards=[7, 8, 10]))


async def test_a_liar_is_set_aside_and_what_is_made_is_right(swarm: Swarm) -> None:
    node = await swarm.hold("lies", "honest", "honest", "honest", shards=[0, 1, 2, 3])
    staging = await rebuild(swarm, node, [6])
    assert staging.shards(swarm.encoded.encoding) == [6]
    assert [shard for _, shard, *_ in node.faults] in ([0], [])


async def test_too_few_leave_nothing_behind(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "honest", shards=[0, 1])
    with pytest.raises(Unavailable):
        await rebuild(swarm, node, [5])
    assert list((swarm.tmp_path / "staging").iterdir()) == []


async def test_a_root_that_no_code_gives_blames_the_signer(swarm: Swarm) -> None:
    signer, record = parse_encoding(swarm.encoded.envelope)
    record.roots[9] = bytes(32)
    lie = seal_encoding(KEY, record)
    node = await swarm.hold("honest", "honest", "honest", shards=[0, 1, 2])
    for holder in swarm.holders:
        holder.encoding = encoding_id(lie)
    with pytest.raises(PeerFault, match=signer):
        await rebuild(swarm, node, [9], lie)
    assert list((swarm.tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("make", [[], [-1], [ROOTS], [0, 300]])
async def test_shards_that_dont_exist_are_refused(swarm: Swarm, make: list[int]) -> None:
    node = await swarm.hold("honest", "honest", "honest")
    with pytest.raises(BadInput, match="can be made"):
        await rebuild(swarm, node, make)


async def test_what_is_staged_already_isnt_disturbed(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "honest", "honest")
    await rebuild(swarm, node, [3])
    with pytest.raises(Conflict):
        await rebuild(swarm, node, [4])


async def test_cancelled_in_the_middle_leaves_nothing(swarm: Swarm) -> None:
    node = await swarm.hold("honest", "honest", "mute", shards=[0, 1, 2])
    task = asyncio.create_task(rebuild(swarm, node, [5]))
    await until(lambda: all(holder.asked for holder in swarm.holders), 5, "all are asked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((swarm.tmp_path / "staging").iterdir()) == []
