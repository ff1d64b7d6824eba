"""A group coded into staged shards: any k of them give it back, and nothing stays behind when coding fails."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from erasure.cipher import PUBLIC_SECRET
from erasure.code import Code
from erasure.segment import decode_segment
from node.transfer.encode import LeafHasher, encode_group
from node.transfer.jobs import EncodeGroup, SourceSpan
from node.transfer.staging import Staging
from protocol.encoding import leaf_digests, parse_encoding, shard_root
from protocol.errors import BadInput, NotFound
from protocol.signing import peer_of

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, "coding") as pool:
        yield pool


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path / "staging")


def job_of(spans: list[SourceSpan], k: int = 2, n: int = 4, compression: str = "auto", element: int = 1) -> EncodeGroup:
    length = sum(span.length for span in spans)
    return EncodeGroup(
        model=bytes(32),
        group=0,
        group_id=b"g" * 32,
        length=length,
        spans=spans,
        k=k,
        n=n,
        compression=compression,
        element=element,
    )


def file_of(data: bytes, tmp_path: Path) -> int:
    path = tmp_path / "weights"
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def decoded(staging: Staging, encoding: bytes, shards: list[int]) -> bytes:
    record = staging.record(encoding)
    files = {j: staging.path(encoding, j).read_bytes() for j in shards}
    out, at = bytearray(record.length), 0
    done = 0
    for index, (segment, length) in enumerate(zip(record.segments, record.piece_lengths(), strict=True)):
        pieces = {j: file[at : at + length] for j, file in files.items()}
        decode_segment(record, index, pieces, memoryview(out)[done : done + segment.plain], PUBLIC_SECRET)
        at, done = at + length, done + segment.plain
    return bytes(out)


@pytest.mark.parametrize("compression", ["auto", "raw", "zstd", "planes2-zstd"])
async def test_any_k_staged_shards_give_the_group_back(
    compression: str, tmp_path: Path, staging: Staging, executor: ThreadPoolExecutor
) -> None:
    data = random.Random(3).randbytes(1_500_000)
    fd = file_of(data, tmp_path)
    spans = [SourceSpan(0, 100, 700_001), SourceSpan(-1, 0, 63), SourceSpan(0, 900_000, 600_000)]
    expected = data[100:700_101] + bytes(63) + data[900_000:1_500_000]
    seen: list[int] = []
    result = await encode_group(
        job_of(spans, compression=compression), [fd], staging, KEY, executor, lambda done, _total: seen.append(done)
    )
    os.close(fd)
    signer, record = parse_encoding(result.envelope)
    assert signer == peer_of(KEY)
    assert staging.list() == [result.encoding]
    assert seen[-1] == len(expected)
    assert result.stored_bytes == 4 * result.shard_bytes == 4 * record.shard_length()
    for shard in range(4):
        staged = staging.open(result.encoding, shard)
        content = staged.path.read_bytes()
        assert b"".join(leaf_digests(content)) == staged.leaves
        assert shard_root(len(content), staged.leaves) == record.roots[shard]
    assert decoded(staging, result.encoding, [1, 3]) == expected


async def test_shards_beyond_n_are_committed_to_and_made_by_anyone_later(
    tmp_path: Path, staging: Staging, executor: ThreadPoolExecutor
) -> None:
    """The fifth shard of a group coded 2 of 3, from the two that are there: its leaves give the root signed long before."""
    data = random.Random(5).randbytes(1_300_000)
    fd = file_of(data, tmp_path)
    job = msgspec.structs.replace(job_of([SourceSpan(0, 0, len(data))], 2, 3, "raw"), n_max=6)
    done = await encode_group(job, [fd], staging, KEY, executor)
    os.close(fd)
    record = parse_encoding(done.envelope)[1]
    assert (record.n, len(record.roots), list(staging.shards(done.encoding))) == (3, 6, [0, 1, 2])
    files = [staging.path(done.encoding, shard).read_bytes() for shard in (0, 1)]
    made, at = b"", 0
    for length in record.piece_lengths():
        made += Code(2, 6).encode([file[at : at + length] for file in files])[5 - 2]
        at += length
    assert shard_root(len(made), leaf_digests(made)) == record.roots[5]


async def test_only_the_shards_asked_for_are_staged_beyond_n_too(tmp_path: Path, staging: Staging, executor: ThreadPoolExecutor) -> None:
    data = random.Random(5).randbytes(300_000)
    fd = file_of(data, tmp_path)
    job = msgspec.structs.replace(job_of([SourceSpan(0, 0, len(data))]), n_max=7)
    first = await encode_group(job, [fd], staging, KEY, executor)
    whole = {shard: staging.path(first.encoding, shard).read_bytes() for shard in staging.shards(first.encoding)}
    assert sorted(whole) == [0, 1, 2, 3]
    staging.drop(first.encoding)
    some = msgspec.structs.replace(job, stage=(6, 1), like=first.envelope)
    again = await encode_group(some, [fd], staging, KEY, executor)
    assert (again.encoding, sorted(staging.shards(again.encoding))) == (first.encoding, [1, 6])
    assert staging.path(again.encoding, 1).read_bytes() == whole[1]
    assert decoded(staging, again.encoding, [1, 6]) == data
    for wrong in ((7,), (-1, 2)):
        with pytest.raises(BadInput, match="can be staged"):
            await encode_group(msgspec.structs.replace(job, stage=wrong), [fd], staging, KEY, executor)


async def test_the_same_group_gives_the_same_encoding(tmp_path: Path, staging: Staging, executor: ThreadPoolExecutor) -> None:
    fd = file_of(b"w" * 300_000, tmp_path)
    first = await encode_group(job_of([SourceSpan(0, 0, 300_000)]), [fd], staging, KEY, executor)
    again = await encode_group(job_of([SourceSpan(0, 0, 300_000)]), [fd], staging, KEY, executor)
    os.close(fd)
    assert first == again
    assert staging.list() == [first.encoding]
    assert staging.clean() == 0


async def test_a_file_grown_shorter_leaves_nothing(tmp_path: Path, staging: Staging, executor: ThreadPoolExecutor) -> None:
    fd = file_of(b"w" * 3_000_000, tmp_path)
    os.truncate(tmp_path / "weights", 2_000_000)
    with pytest.raises(BadInput, match="shorter"):
        await encode_group(job_of([SourceSpan(0, 0, 3_000_000)]), [fd], staging, KEY, executor)
    os.close(fd)
    assert list((tmp_path / "staging").iterdir()) == []


async def test_cancelled_coding_leaves_nothing(tmp_path: Path, staging: Staging, executor: ThreadPoolExecutor) -> None:
    fd = file_of(os.urandom(8_000_000), tmp_path)
    begun = asyncio.Event()
    task = asyncio.create_task(encode_group(job_of([SourceSpan(0, 0, 8_000_000)]), [fd], staging, KEY, executor, lambda *_: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.close(fd)
    assert list((tmp_path / "staging").iterdir()) == []


async def test_spans_must_fit(staging: Staging, executor: ThreadPoolExecutor) -> None:
    for spans in ([SourceSpan(3, 0, 10)], [SourceSpan(-1, -1, 10)]):
        with pytest.raises(BadInput):
            await encode_group(job_of(spans), [], staging, KEY, executor)


async def test_an_empty_group_has_empty_shards(staging: Staging, executor: ThreadPoolExecutor) -> None:
    result = await encode_group(job_of([]), [], staging, KEY, executor)
    assert result.shard_bytes == 0
    assert staging.open(result.encoding, 3).leaves == b""


async def test_staging_is_dropped_and_cleaned(tmp_path: Path, staging: Staging, executor: ThreadPoolExecutor) -> None:
    result = await encode_group(job_of([SourceSpan(-1, 0, 1000)], n=2), [], staging, KEY, executor)
    staging.begin()
    assert staging.list() == [result.encoding]
    assert staging.clean() == 1
    staging.drop_shard(result.encoding, 0)
    with pytest.raises(NotFound):
        staging.open(result.encoding, 0)
    assert staging.shards(result.encoding) == [1]
    with staging.path(result.encoding, 1).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadInput, match="incomplete"):
        staging.open(result.encoding, 1)
    staging.drop_shard(result.encoding, 1)
    assert staging.list() == []
    with pytest.raises(NotFound):
        staging.envelope(result.encoding)


def test_leaves_are_the_same_in_any_cuts() -> None:
    data = random.Random(5).randbytes(200_000)
    hasher = LeafHasher()
    for at in range(0, len(data), 7777):
        hasher.update(memoryview(data)[at : at + 7777])
    assert hasher.finish() == b"".join(leaf_digests(data))
