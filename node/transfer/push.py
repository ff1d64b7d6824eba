"""A staged shard sent to the node that will keep it: PUT of leaf list and bytes, answered 201 once durable there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor

import aiohttp

from node.transfer.finishing import to_the_end
from node.transfer.jobs import PushShard
from node.transfer.lines import CONNECT_WITHIN
from node.transfer.sources import Access, Connections, SourceFailed, refusal, shard_path
from node.transfer.staging import StagedShard, Staging
from protocol import limits
from protocol.errors import DeadlineExceeded, Unavailable

SLOWEST = 256 * limits.KIB
"""Bytes per second below which a push is given up."""

STALLED_AFTER = 20.0
GRACE = 60.0
_STEP = limits.MIB
_LOOK_EVERY = 0.5


async def push_shard(
    job: PushShard, staging: Staging, connections: Connections, executor: Executor, stalled_after: float = STALLED_AFTER
) -> None:
    """Returns once the peer has the shard durably. The staged shard stays.

    The peer's own error when it refuses (`StorageFull`, `Forbidden`, ...), naming it; `Unavailable` when it can't be reached;
    `DeadlineExceeded` when it stalls; `NotFound` when the shard isn't staged.
    """
    staged = await to_the_end(asyncio.get_running_loop().run_in_executor(executor, staging.open, job.encoding, job.shard))
    body = _Body(staged, executor)
    sending = asyncio.create_task(_put(job, staged, body, connections), name=f"push shard {job.shard} to {job.peer}")
    try:
        await _watch(sending, body, job, GRACE + staged.length / SLOWEST, stalled_after)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _put(job: PushShard, staged: StagedShard, body: _Body, connections: Connections) -> None:
    access = Access(urls=job.urls, tls=job.tls, grant=job.grant)
    headers = {"Content-Length": str(len(staged.leaves) + staged.length), "Content-Type": "application/octet-stream"}
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

    def __init__(self, staged: StagedShard, executor: Executor) -> None:
        self._staged = staged
        self._executor = executor
        self.moved = asyncio.get_running_loop().time()

    async def stream(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        yield self._staged.leaves
        file = os.open(self._staged.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for at in range(0, self._staged.length, _STEP):
                size = min(_STEP, self._staged.length - at)
                data = await to_the_end(loop.run_in_executor(self._executor, os.pread, file, size, at))
                if len(data) != size:
                    raise Unavailable(f"the staged shard {self._staged.path} got shorter while it was sent")
                self.moved = loop.time()
                yield data
        finally:
            os.close(file)
        self.moved = loop.time()
