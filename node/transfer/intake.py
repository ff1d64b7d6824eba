"""Taking a shard in from the wire: leaf list, then bytes, each leaf checked as it comes, durable at the end."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass

from aiohttp import StreamReader

from node.store.interface import ShardInfo, ShardStore, ShardWriter
from node.transfer.admission import ExpectedPut
from protocol import limits
from protocol.encoding import leaf_count, parse_encoding
from protocol.errors import BadInput, DeadlineExceeded, NotFound
from protocol.ids import EncodingId, encoding_text

READ_TIMEOUT = 30.0
BATCH = limits.MIB
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


async def take_in(store: ShardStore, executor: Executor, put: ExpectedPut, shape: Shape, body: StreamReader) -> ShardInfo:
    """The stored shard. Whatever goes wrong, a client that leaves included, nothing stays behind."""
    if not put.key.shard < len(shape.roots):
        raise BadInput(f"the encoding commits to {len(shape.roots)} shards, there is no shard {put.key.shard}")
    info = ShardInfo(put.key, put.model, put.group, shape.shard_bytes, time.time(), put.owner)
    loop = asyncio.get_running_loop()
    leaves = await _exactly(body, 32 * leaf_count(shape.shard_bytes))
    opening = loop.run_in_executor(executor, store.put_shard, info, leaves, shape.roots[put.key.shard])
    try:
        writer = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda done: done.exception() or loop.run_in_executor(executor, done.result().abort))
        raise
    running: asyncio.Future[None] | None = None
    try:
        async for batch in _batches(body):
            running = loop.run_in_executor(executor, _write, writer, batch)
            await asyncio.shield(running)
        running = loop.run_in_executor(executor, writer.commit)
        await asyncio.shield(running)
    finally:
        # An abort may only run once no thread writes any more, also when this task was cancelled.
        await asyncio.shield(asyncio.ensure_future(_abort(executor, writer, running)))
    return info


async def _abort(executor: Executor, writer: ShardWriter, running: asyncio.Future[None] | None) -> None:
    if running is not None:
        await asyncio.wait([running])
    await asyncio.get_running_loop().run_in_executor(executor, writer.abort)


def _write(writer: ShardWriter, batch: list[bytes]) -> None:
    for data in batch:
        writer.write(data)


async def _exactly(body: StreamReader, size: int) -> bytes:
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await body.readexactly(size)
    except TimeoutError:
        raise DeadlineExceeded(f"the client sent nothing for {READ_TIMEOUT:.0f} s") from None
    except asyncio.IncompleteReadError as error:
        raise BadInput(f"the body ended after {len(error.partial)} bytes, its leaf list has {size}") from error


async def _batches(body: StreamReader) -> AsyncIterator[list[bytes]]:
    """What comes, gathered to about 1 MiB, so that a thread is asked once for each."""
    batch: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                data = await body.readany()
        except TimeoutError:
            raise DeadlineExceeded(f"the client sent nothing for {READ_TIMEOUT:.0f} s") from None
        if data:
            batch.append(data)
            size += len(data)
        if batch and (size >= BATCH or not data):
            yield batch
            batch, size = [], 0
        if not data:
            return
