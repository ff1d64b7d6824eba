"""A shard, staged or held, sent to the node that will keep it: PUT of leaf list and bytes, answered 201 once durable there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Protocol

import aiohttp

from node.store.interface import ShardKey, ShardStore
from node.transfer.finishing import to_the_end
from node.transfer.jobs import PushShard
from node.transfer.lines import CONNECT_WITHIN
from node.transfer.sources import Access, Connections, SourceFailed, refusal, shard_path
from node.transfer.staging import StagedShard, Staging
from protocol import limits
from protocol.errors import DeadlineExceeded, NotFound, Unavailable
from protocol.ids import EncodingId, encoding_text

SLOWEST = 256 * limits.KIB
"""Bytes per second below which a push is given up."""

STALLED_AFTER = 20.0
GRACE = 60.0
_STEP = limits.MIB
_LOOK_EVERY = 0.5


class Outgoing(Protocol):
    """A shard to send: a `ShardReader` is one."""

    @property
    def length(self) -> int: ...

    def leaves(self) -> bytes: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def close(self) -> None: ...


class _Staged:
    """A staged shard's file, open."""

    def __init__(self, staged: StagedShard) -> None:
        self._staged = staged
        self._file = os.open(staged.path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def length(self) -> int:
        return self._staged.length

    def leaves(self) -> bytes:
        return self._staged.leaves

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, length, offset)

    def close(self) -> None:
        os.close(self._file)


def open_outgoing(job: PushShard, staging: Staging, store: ShardStore | None) -> Outgoing:
    """Blocks; `NotFound` when it isn't there."""
    if not job.held:
        return _Staged(staging.open(job.encoding, job.shard))
    reader = store.open_shard(ShardKey(EncodingId(job.encoding), job.shard)) if store is not None else None
    if reader is None:
        raise NotFound(f"shard {job.shard} of {encoding_text(EncodingId(job.encoding))} isn't held here (any more)")
    return reader


async def push_shard(
    job: PushShard,
    staging: Staging,
    connections: Connections,
    executor: Executor,
    stalled_after: float = STALLED_AFTER,
    store: ShardStore | None = None,
) -> None:
    """Returns once the peer has the shard durably. What lies here stays.

    The peer's own error when it refuses (`StorageFull`, `Forbidden`, ...), naming it; `Unavailable` when it can't be reached;
    `DeadlineExceeded` when it stalls; `NotFound` when the shard isn't here.
    """
    loop = asyncio.get_running_loop()
    shard = await to_the_end(loop.run_in_executor(executor, open_outgoing, job, staging, store))
    body = _Body(shard, executor)
    sending = asyncio.create_task(_put(job, shard, body, connections), name=f"push shard {job.shard} to {job.peer}")
    try:
        await _watch(sending, body, job, GRACE + shard.length / SLOWEST, stalled_after)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await to_the_end(loop.run_in_executor(executor, shard.close))


async def _put(job: PushShard, shard: Outgoing, body: _Body, connections: Connections) -> None:
    access = Access(urls=job.urls, tls=job.tls, grant=job.grant)
    headers = {"Content-Length": str(len(shard.leaves()) + shard.length), "Content-Type": "application/octet-stream"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN)
    path = shard_path(job.encoding, job.shard)
    try:
        async with await connections.request("PUT", access, job.peer, path, timeout, data=body.stream(), headers=headers) as response:
            if response.status == 201:
                return
            error = await refusal(response)
    except SourceFailed as failed:
        raise failed.unavailable() from failed
    except aiohttp.ClientError as broken:
        raise Unavailable(
            f"node {job.peer} broke off while shard {job.shard} was sent: {broken or type(broken).__name__}", details={"peer": job.peer}
        ) from broken
    raise type(error)(
        f"node {job.peer} refused shard {job.shard}: {error.message}", hint=error.hint, details={**error.details, "peer": job.peer}
    )


async def _watch(sending: asyncio.Task[None], body: _Body, job: PushShard, within: float, stalled_after: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not sending.done():
        await asyncio.wait([sending], timeout=min(_LOOK_EVERY, stalled_after))
        now = loop.time()
        if not sending.done() and (now - body.moved > stalled_after or now - began > within):
            waited = "took nothing" if now - body.moved > stalled_after else "was too slow"
            raise DeadlineExceeded(
                f"node {job.peer} {waited} while shard {job.shard} was sent: given up after {now - began:.0f} s",
                details={"peer": job.peer, "shard": job.shard},
            )
    await sending


class _Body:
    """The bytes to send; `moved` is when the connection last asked for more."""

    def __init__(self, shard: Outgoing, executor: Executor) -> None:
        self._shard = shard
        self._executor = executor
        self.moved = asyncio.get_running_loop().time()

    async def stream(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        yield self._shard.leaves()
        for at in range(0, self._shard.length, _STEP):
            size = min(_STEP, self._shard.length - at)
            data = await to_the_end(loop.run_in_executor(self._executor, self._shard.read, at, size))
            if len(data) != size:
                raise Unavailable("the shard got shorter while it was sent")
            self.moved = loop.time()
            yield data
        self.moved = loop.time()
