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

from erasure.code import Code
from node.transfer.decoding import Lent
from node.transfer.encode import LeafHasher
from node.transfer.fetch import fetch_group
from node.transfer.fetch_board import Shape
from node.transfer.finishing import to_the_end
from node.transfer.jobs import Fetched, FetchGroup, RebuildShards
from node.transfer.slots import Slot
from node.transfer.sources import Callbacks, Connections
from node.transfer.staging import Staging, leaves_path
from protocol.encoding import encoding_id, parse_encoding, shard_root
from protocol.errors import BadInput, Conflict, PeerFault, StorageFull


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
    columns = Columns(job.envelope, make, making, executor)
    sources = [source for source in job.sources if source.shard not in make]
    ask = FetchGroup(job=job.job, envelope=job.envelope, offset=0, sources=sources)
    try:
        found = await fetch_group(ask, columns, connections, callbacks)
        await to_the_end(loop.run_in_executor(executor, columns.finish, signer))
        await to_the_end(loop.run_in_executor(executor, staging.finish, making, job.envelope))
        return found
    except OSError as error:
        raise StorageFull(f"staging shards in {making.parent} failed: {error.strerror}", hint="free some space on that disk") from error
    finally:
        for slot in await columns.end():
            connections.slots.give_back(slot)
        columns.close()
        staging.abandon(making)


class Columns:
    """A `Decoding` whose windows become columns in files of `folder`, one after the other."""

    def __init__(self, envelope: bytes, make: list[int], folder: Path, executor: Executor) -> None:
        _, self._record = parse_encoding(envelope)
        self._shape = Shape.of(encoding_id(envelope), self._record)
        self._code = Code(self._record.k, len(self._record.roots))
        self._folder = folder
        self._executor = executor
        self._hashers = {shard: LeafHasher() for shard in make}
        self._files: dict[int, int] = {}
        self._rooms: dict[int, bytearray] = {}
        self._lent = Lent()
        self._turn = asyncio.Lock()

    async def window(self, window: int, got: Mapping[int, Slot], spare: list[Slot]) -> list[Slot]:
        self._lent.add(got, spare)
        async with self._turn:
            await to_the_end(asyncio.get_running_loop().run_in_executor(self._executor, self._make, window, got))
        return self._lent.back(slot.number for slot in (*got.values(), *spare))

    async def end(self) -> list[Slot]:
        return self._lent.all_back()

    def _make(self, window: int, got: Mapping[int, Slot]) -> None:
        size = self._shape.window_length(window)
        if not self._rooms:
            self._rooms = {shard: bytearray(size) for shard in self._hashers}  # the first window is the longest
        into = {shard: memoryview(room)[:size] for shard, room in self._rooms.items()}
        self._code.make({shard: slot.view[:size] for shard, slot in got.items()}, into)
        for shard, column in into.items():
            self._hashers[shard].update(column)
            self._write_all(shard, column)

    def finish(self, signer: str) -> None:
        """Writes the leaf lists; `PeerFault` where a root isn't the encoding's."""
        for shard, hasher in self._hashers.items():
            leaves = hasher.finish()
            if not self._record.length:
                self._write_all(shard, memoryview(b""))
            if shard_root(hasher.length, leaves) != self._record.roots[shard]:
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
