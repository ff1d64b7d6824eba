"""Missing shards of an encoding made anew from any k others, and staged to be pushed.

The code works on each byte column by itself, whatever segment it belongs to, so nothing is opened, unpacked or compressed again:
windows of k shards come in as for a read (`fetch.py`: hedged, every leaf checked), columns go out. Each column's leaves must
give the root that the encoding commits to, so what is staged is what its signer made, byte for byte.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

from erasure.cipher import PUBLIC_SECRET
from erasure.code import Code
from node.transfer.encode import LeafHasher
from node.transfer.fetch import GroupFetch
from node.transfer.fetch_assemble import Assembler
from node.transfer.fetch_board import Shape
from node.transfer.finishing import to_the_end
from node.transfer.jobs import Fetched, FetchGroup, RebuildShards
from node.transfer.sink import Sink
from node.transfer.sources import Callbacks, Connections
from node.transfer.staging import Staging, leaves_path
from protocol.encoding import Encoding, encoding_id, parse_encoding, shard_root
from protocol.errors import BadInput, Conflict, DeadlineExceeded, PeerFault, StorageFull


async def rebuild_shards(
    job: RebuildShards, staging: Staging, connections: Connections, callbacks: Callbacks, executor: Executor
) -> Fetched:
    """Stages the shards numbered in `job.make`. On any failure, being cancelled included, nothing stays behind.

    As `fetch_group`'s errors, and `PeerFault` where a column doesn't give its root: the encoding's signer committed to something
    that isn't a code; `Conflict` while other shards of this encoding are staged here.
    """
    loop = asyncio.get_running_loop()
    signer, record = parse_encoding(job.envelope)
    make = sorted(set(job.make))
    if not make or make[0] < 0 or make[-1] >= len(record.roots):
        raise BadInput(f"rebuild: shards 0 to {len(record.roots) - 1} can be made, not {job.make}")
    encoding = encoding_id(job.envelope)
    if staging.shards(encoding):
        raise Conflict("shards of this encoding are being placed from here")
    making = await to_the_end(loop.run_in_executor(executor, staging.begin))
    columns = Columns(record, Shape.of(encoding, record), make, making, connections)
    try:
        found = await _fetched(job, columns, connections, callbacks, executor)
        await to_the_end(loop.run_in_executor(executor, columns.finish, signer))
        await to_the_end(loop.run_in_executor(executor, staging.finish, making, job.envelope))
        return found
    except OSError as error:
        raise StorageFull(f"staging shards in {making.parent} failed: {error.strerror}", hint="free some space on that disk") from error
    finally:
        columns.close()
        staging.abandon(making)


async def _fetched(job: RebuildShards, columns: Columns, connections: Connections, callbacks: Callbacks, executor: Executor) -> Fetched:
    ask = FetchGroup(
        job=job.job, envelope=job.envelope, offset=0, sources=[source for source in job.sources if source.shard not in job.make]
    )
    fetch = _ColumnsFetch(ask, columns, connections, callbacks, executor)
    try:
        async with asyncio.timeout(fetch.deadline):
            return await fetch.run()
    except TimeoutError as error:
        raise DeadlineExceeded(f"{fetch.name} wasn't read within {fetch.deadline:.0f} s", details=fetch.situation()) from error


class _ColumnsFetch(GroupFetch):
    """The same lanes and hedges; what comes goes into columns, not into the group."""

    def __init__(self, job: FetchGroup, columns: Columns, connections: Connections, callbacks: Callbacks, executor: Executor) -> None:
        super().__init__(job, Sink([], []), connections, callbacks, executor, PUBLIC_SECRET)
        self._assembler = columns


class Columns(Assembler):
    """Windows in, columns to files. One window at a time, in an executor's thread."""

    def __init__(self, record: Encoding, shape: Shape, make: list[int], folder: Path, connections: Connections) -> None:
        super().__init__(record, shape, Sink([], []), connections.workroom, PUBLIC_SECRET)
        self._encoding = record
        self._windows = shape
        self._columns = Code(record.k, len(record.roots))
        self._folder = folder
        self._hashers = {shard: LeafHasher() for shard in make}
        self._files: dict[int, int] = {}
        self._rooms: dict[int, bytearray] = {}

    def window(self, window: int, got: Mapping[int, bytearray], spare: list[bytearray]) -> list[bytearray]:
        """Writes this window of every column; returns the buffers free again."""
        size = self._windows.window_length(window)
        if len(self._rooms) != len(self._hashers):
            self._rooms = {shard: bytearray(size) for shard in self._hashers}  # the first window is the longest
        into = {shard: memoryview(room)[:size] for shard, room in self._rooms.items()}
        self._columns.make({shard: memoryview(buffer)[:size] for shard, buffer in got.items()}, into)
        for shard, column in into.items():
            self._hashers[shard].update(column)
            self._write_all(shard, column)
        return [*got.values(), *spare]

    def finish(self, signer: str) -> None:
        """Writes the leaf lists; `PeerFault` where a root isn't the encoding's."""
        for shard, hasher in self._hashers.items():
            leaves = hasher.finish()
            if not self._encoding.length:
                self._write_all(shard, memoryview(b""))
            if shard_root(hasher.length, leaves) != self._encoding.roots[shard]:
                raise PeerFault(f"shard {shard} made anew isn't the one that {signer} committed to", details={"peer": signer})
            leaves_path(self._folder / str(shard)).write_bytes(leaves)

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files = {}

    def _write_all(self, shard: int, view: memoryview) -> None:
        if shard not in self._files:
            self._files[shard] = os.open(self._folder / str(shard), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        while view:
            view = view[os.write(self._files[shard], view) :]
