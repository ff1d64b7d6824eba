"""A fetch that ends at any moment and begins again: what it had received isn't fetched twice, and the bytes are right."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from random import Random

import pytest

from node.transfer import leftovers
from node.transfer import slots as slots_module
from node.transfer.decoding import ThreadDecoding
from node.transfer.fetch import GroupFetch
from node.transfer.fetch_board import WINDOW
from node.transfer.jobs import Fetched, FetchGroup, TargetSpan
from node.transfer.marks import read_mark
from node.transfer.sink import Sink
from node.transfer.sources import Connections
from protocol import limits
from protocol.encoding import leaf_digests, parse_encoding
from protocol.windows import SIGNATURE
from tests.node.transfer.holders import Node
from tests.node.transfer.test_fetch import K, N, Swarm, coded, executor, swarm  # noqa: F401

ROOMS = 64
"""Slots, so that copying their file is quick."""


class Home:
    """What a process of this name has on the disk: the file being written, its marks, the windows."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.fds = [os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("out", "marks")]
        self.connections = Connections()
        self.connections.slots.path = folder / "windows"

    @property
    def done(self) -> int:
        return read_mark(self.fds[1], 0)

    def killed_now(self, folder: Path) -> Home:
        """As another process would find it after a SIGKILL. The windows first: one that is written meanwhile may then lie there too."""
        shutil.copytree(self.folder, folder, copy_function=shutil.copy)
        for name in ("windows", "marks", "out"):
            shutil.copy(self.folder / name, folder / name)
        return Home(folder)

    def begin(self, swarm: Swarm, node: Node) -> GroupFetch:  # noqa: F811
        spans = [TargetSpan(0, 0, 0, len(swarm.data))]
        sources = [holder.source for holder in swarm.holders]
        job = FetchGroup(job="j", envelope=swarm.encoded.envelope, offset=0, sources=sources, spans=spans, mark=0, done=self.done)
        decoding = ThreadDecoding(job.envelope, Sink.marked(job, self.fds), swarm.executor, done=job.done)
        return GroupFetch(job, decoding, self.connections, node.callbacks)

    async def finish(self, swarm: Swarm, node: Node) -> Fetched:  # noqa: F811
        """Fetches what is missing; the bytes are right."""
        result = await self.begin(swarm, node).run()
        assert os.pread(self.fds[0], len(swarm.data) + 1, 0) == swarm.data
        await self.close()
        assert not (self.folder / "windows").exists(), "something is left over"
        return result

    async def close(self) -> None:
        await self.connections.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(slots_module, "MOST", ROOMS)
    return Home(tmp_path / "home")


def received(fetch: GroupFetch) -> int:
    return sum(reader.received for reader in [*fetch._ended, *fetch._lanes.values()])


async def stopped_at(fetch: GroupFetch, count: int) -> asyncio.Task[Fetched]:
    """Runs it until it has received so many bytes."""
    task = asyncio.create_task(fetch.run())
    while received(fetch) < count and not task.done():  # noqa: ASYNC110 - looked at in each turn of the loop
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shards", [[0, 1, 2], [1, 4, 5]])
async def test_a_kill_costs_the_leaf_under_way(swarm: Swarm, home: Home, tmp_path: Path, seed: int, shards: list[int]) -> None:  # noqa: F811
    """Of each connection: besides it the list of leaves comes twice, and a signature for a window that is cut in two."""
    node = await swarm.hold(*["honest"] * K, shards=shards)
    _, record = parse_encoding(swarm.encoded.envelope)
    first = home.begin(swarm, node)
    task = await stopped_at(first, int(Random(seed).uniform(0.02, 0.98) * len(swarm.data)))
    before, after_kill = received(first), home.killed_now(tmp_path / "after")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await home.close()
    done, result = after_kill.done, await after_kill.finish(swarm, node)
    lost = before + result.bytes - K * record.shard_length()
    print(f"killed at {before} bytes, {done} written: {result.bytes} read then, {lost / K / limits.LEAF:.2f} leaves a connection lost")
    windows = -(-record.shard_length() // WINDOW)
    assert lost <= K * (limits.LEAF + 2 * 32 * first._shape.leaves + 2 * (windows + 1) * SIGNATURE)


async def test_what_is_left_over_and_damaged_is_read_again(swarm: Swarm, home: Home, tmp_path: Path) -> None:  # noqa: F811
    """Wherever a bit turned, in bytes or labels; and nobody is blamed for it."""
    node = await swarm.hold(*["honest"] * N)
    task = await stopped_at(home.begin(swarm, node), len(swarm.data) // 2)
    for seed in range(8):
        shutil.rmtree(tmp_path / "after", ignore_errors=True)
        after_kill, random = home.killed_now(tmp_path / "after"), Random(seed)
        with (tmp_path / "after" / "windows").open("r+b") as file:
            for slot in range(ROOMS):
                at = slot * slots_module.SIZE + random.randrange(WINDOW + 600 if seed % 2 else WINDOW)
                file.seek(at)
                was = file.read(1)
                file.seek(at)
                file.write(bytes([was[0] ^ 1 << random.randrange(8)]))
        await after_kill.finish(swarm, node)
    assert node.faults == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await home.close()


async def test_a_label_that_lies_is_found_out(swarm: Swarm, home: Home, tmp_path: Path) -> None:  # noqa: F811
    """Bytes and digests that fit each other, but not the shard."""
    node = await swarm.hold(*["honest"] * K)
    task = await stopped_at(home.begin(swarm, node), len(swarm.data) // 2)
    after_kill = home.killed_now(tmp_path / "after")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await home.close()
    after_kill.connections.slots.memory()
    assert after_kill.connections.slots.left
    for slot in after_kill.connections.slots.left:
        slot.view[:] = bytes(len(slot.view))
        _, encoding, shard, first, count = leftovers._HEAD.unpack_from(slot.label)
        leftovers.label(slot, encoding, shard, first, b"".join(leaf_digests(bytes(limits.LEAF))) * count)
    await after_kill.finish(swarm, node)
    assert node.faults == []


async def test_from_every_segment(swarm: Swarm, home: Home) -> None:  # noqa: F811
    node = await swarm.hold(*["honest"] * N)
    _, record = parse_encoding(swarm.encoded.envelope)
    edges = [sum(segment.plain for segment in record.segments[:count]) for count in range(len(record.segments) + 1)]
    for edge in edges:
        for done in {edge, min(edge + 1, len(swarm.data)), max(0, edge - 1)}:
            os.pwrite(home.fds[0], swarm.data[:done], 0)
            os.ftruncate(home.fds[0], done)
            os.pwrite(home.fds[1], done.to_bytes(8, "little"), 0)
            await home.begin(swarm, node).run()
            assert os.pread(home.fds[0], len(swarm.data) + 1, 0) == swarm.data
            assert home.done == len(swarm.data)
    await home.close()
