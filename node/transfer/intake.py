"""Taking a shard in from the wire: leaf list, then bytes, each leaf checked as it comes, durable at the end."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from node.store.interface import ShardInfo, ShardStore, ShardWriter
from node.transfer.admission import ExpectedPut
from protocol import limits
from protocol.encoding import leaf_count, parse_encoding
from protocol.errors import BadInput, NotFound
from protocol.ids import EncodingId, encoding_text

BATCH = limits.MIB
ROOMS_KEPT = 12
_REMEMBERED = 64


@dataclass(frozen=True)
class Shape:
    """What an encoding says of its shards."""

    shard_bytes: int
    roots: list[bytes]

    @property
    def body_bytes(self) -> int:
        """Of a put: leaf list and shard."""
        return 32 * leaf_count(self.shard_bytes) + self.shard_bytes


class Shapes:
    """Shapes of encodings in the store, the last few remembered: parsing a large one takes milliseconds."""

    def __init__(self, store: ShardStore, executor: Executor) -> None:
        self._store, self._executor = store, executor
        self._known: OrderedDict[EncodingId, Shape] = OrderedDict()

    async def of(self, encoding: EncodingId) -> Shape:
        if encoding not in self._known:
            self._known[encoding] = await asyncio.get_running_loop().run_in_executor(self._executor, self._read, encoding)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[encoding]

    def _read(self, encoding: EncodingId) -> Shape:
        envelope = self._store.get_blob(encoding)
        if envelope is None:
            raise NotFound(f"the encoding {encoding_text(encoding)} isn't held here", hint="send its envelope when asking for the grant")
        _, record = parse_encoding(envelope)
        return Shape(record.shard_length(), record.roots)


class Body(Protocol):
    """A request's body, in order."""

    async def fill(self, view: memoryview) -> None:
        """Fills all of `view` with the bytes that come next.

        `BadInput`: the body ended before; `DeadlineExceeded`: nothing came for long; `ConnectionError`: the client has left.
        """


class Rooms:
    """Buffers of a batch each, kept for the next put: fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self._rooms: list[bytearray] = []

    def take(self) -> memoryview:
        return memoryview(self._rooms.pop() if self._rooms else bytearray(BATCH))

    def give_back(self, room: memoryview) -> None:
        if len(self._rooms) < ROOMS_KEPT and isinstance(room.obj, bytearray):
            self._rooms.append(room.obj)


async def take_in(store: ShardStore, executor: Executor, rooms: Rooms, put: ExpectedPut, shape: Shape, body: Body) -> ShardInfo:
    """The stored shard. Whatever goes wrong, a client that leaves included, nothing stays behind."""
    if not put.key.shard < len(shape.roots):
        raise BadInput(f"the encoding commits to {len(shape.roots)} shards, there is no shard {put.key.shard}")
    info = ShardInfo(put.key, put.model, put.group, shape.shard_bytes, time.time(), put.owner)
    loop = asyncio.get_running_loop()
    leaves = bytearray(32 * leaf_count(shape.shard_bytes))
    await body.fill(memoryview(leaves))
    opening = loop.run_in_executor(executor, store.put_shard, info, bytes(leaves), shape.roots[put.key.shard])
    try:
        writer = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda done: done.exception() or loop.run_in_executor(executor, done.result().abort))
        raise
    running: asyncio.Future[None] | None = None
    one, other = rooms.take(), rooms.take()
    try:
        for at in range(0, shape.shard_bytes, BATCH):
            # One batch is hashed and written while the next one comes into the other room.
            one, other = other, one
            batch = one[: min(BATCH, shape.shard_bytes - at)]
            await body.fill(batch)
            if running is not None:
                await asyncio.shield(running)
            running = loop.run_in_executor(executor, writer.write, batch)
        if running is not None:
            await asyncio.shield(running)
        running = loop.run_in_executor(executor, writer.commit)
        await asyncio.shield(running)
    finally:
        # An abort may only run once no thread writes any more, also when this task was cancelled.
        await asyncio.shield(asyncio.ensure_future(_abort(executor, writer, running)))
        rooms.give_back(one)
        rooms.give_back(other)
    return info


async def _abort(executor: Executor, writer: ShardWriter, running: asyncio.Future[None] | None) -> None:
    if running is not None:
        await asyncio.wait([running])
    await asyncio.get_running_loop().run_in_executor(executor, writer.abort)
