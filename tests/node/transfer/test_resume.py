"""A fetch that ends at any moment and begins again: what it had written isn't fetched twice, and the bytes are right."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.transfer.decoding import ThreadDecoding
from node.transfer.fetch import GroupFetch
from node.transfer.fetch_board import WINDOW
from node.transfer.jobs import FetchGroup, TargetSpan
from node.transfer.marks import read_mark
from node.transfer.sink import Sink
from protocol.encoding import parse_encoding
from tests.node.transfer.holders import Node
from tests.node.transfer.test_fetch import K, N, Swarm, coded, executor, swarm  # noqa: F401

AHEAD = 4
"""Windows that a reader may be ahead of what is written (`Board`), at most."""
SEGMENTS = 16


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[list[int]]:
    """The file and its marks."""
    made = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("out", "marks")]
    yield made
    for fd in made:
        os.close(fd)


def begin(swarm: Swarm, node: Node, fds: list[int]) -> GroupFetch:  # noqa: F811
    spans = [TargetSpan(0, 0, 0, len(swarm.data))]
    sources = [holder.source for holder in swarm.holders]
    job = FetchGroup(job="j", envelope=swarm.encoded.envelope, offset=0, sources=sources, spans=spans, mark=0, done=read_mark(fds[1], 0))

    decoding = ThreadDecoding(job.envelope, Sink.marked(job, fds), swarm.executor, done=job.done)
    return GroupFetch(job, decoding, swarm.connections, node.callbacks)


def received(fetch: GroupFetch) -> int:
    return sum(reader.received for reader in [*fetch._ended, *fetch._lanes.values()])


@pytest.mark.parametrize("after", range(0, SEGMENTS, 3))
@pytest.mark.parametrize("shards", [[0, 1, 2], [1, 4, 5]])
async def test_what_is_written_isnt_fetched_again(swarm: Swarm, fds: list[int], after: int, shards: list[int]) -> None:  # noqa: F811
    """Stopped once `after` segments are written, as a kill would: nothing is asked of it any more but what lies on the disk."""
    node = await swarm.hold(*["honest"] * K, shards=shards)
    _, record = parse_encoding(swarm.encoded.envelope)
    first = begin(swarm, node, fds)
    task = asyncio.create_task(first.run())
    full = record.segments[0].plain
    while read_mark(fds[1], 0) < after * full and not task.done():
        await first._board.change(0.01)
    before = received(first)
    done = read_mark(fds[1], 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    before, done = max(before, received(first)), max(done, read_mark(fds[1], 0))
    second = begin(swarm, node, fds)
    result = await second.run()
    assert os.pread(fds[0], len(swarm.data) + 1, 0) == swarm.data
    lost = before + result.bytes - K * record.shard_length()
    print(f"stopped at {done} of {len(swarm.data)} bytes: {result.bytes} fetched then, {lost / K / WINDOW:.2f} windows a connection lost")
    assert result.bytes <= K * (record.shard_length() - done // K + 2 * WINDOW)
    assert lost <= K * (AHEAD + 1) * WINDOW


async def test_from_every_segment(swarm: Swarm, fds: list[int]) -> None:  # noqa: F811
    node = await swarm.hold(*["honest"] * N)
    _, record = parse_encoding(swarm.encoded.envelope)
    edges = [sum(segment.plain for segment in record.segments[:count]) for count in range(len(record.segments) + 1)]
    for edge in edges:
        for done in {edge, min(edge + 1, len(swarm.data)), max(0, edge - 1)}:
            os.pwrite(fds[0], swarm.data[:done], 0)
            os.ftruncate(fds[0], done)
            os.pwrite(fds[1], done.to_bytes(8, "little"), 0)
            await begin(swarm, node, fds).run()
            assert os.pread(fds[0], len(swarm.data) + 1, 0) == swarm.data
            assert read_mark(fds[1], 0) == len(swarm.data)
