"""A staged shard sent to the node that will keep it: PUT of leaf list and bytes, answered 201 once durable there."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from node.transfer.finishing import to_the_end
from node.transfer.jobs import PushShard
from node.transfer.lines import SILENT_AT_MOST, Broken, Bytes, Line, Lines, OtherCertificate
from node.transfer.sources import MAX_ERROR, MAX_URLS, Access, Connections, SourceFailed, refusal, shard_path
from node.transfer.staging import StagedShard, Staging
from protocol import limits
from protocol.errors import DeadlineExceeded, Unavailable
from protocol.grants import header_from

log = logging.getLogger(__name__)

SLOWEST = 256 * limits.KIB
"""Bytes per second below which a push is given up."""

STALLED_AFTER = 20.0
GRACE = 60.0
_PIECE = 256 * limits.KIB
"""Larger ones are copied again and again by TLS while the socket takes them (see `door.py`)."""

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
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
    try:
        line = await _sent(job, access, body, connections.lines)
    except SourceFailed as failed:
        raise failed.unavailable() from failed
    try:
        data = await line.body(MAX_ERROR)
        connections.lines.keep(line, access.tls)
    except Broken as error:
        data = b""
        log.info("node %s %s after it answered", job.peer, error)
    finally:
        if line.left:
            line.close()
    if line.status == 201:
        return
    refused = refusal(line.status, data)
    raise type(refused)(
        f"node {job.peer} refused shard {job.shard}: {refused.message}", hint=refused.hint, details={**refused.details, "peer": job.peer}
    )


async def _sent(job: PushShard, access: Access, body: _Body, lines: Lines) -> Line:
    """A line on which the shard was sent and the answer has begun; `SourceFailed` when none did it."""
    if len(access.tls) != 32:
        raise SourceFailed(job.peer, "gave a certificate digest that isn't SHA-256")
    reason = "can't be reached (it gave no address)"
    for base in access.urls[:MAX_URLS]:
        kept = lines.idle(base, access.tls)
        # A line kept open may have been closed by the other end meanwhile: then a new one.
        for line in (Line(base, access.tls),) if kept is None else (kept, Line(base, access.tls)):
            try:
                if not line.used:
                    await line.open()
                line.patience = GRACE + body.length / SLOWEST
                await line.put(shard_path(job.encoding, job.shard), header_from(access.grant), body.length, body.pieces())
                line.patience = SILENT_AT_MOST
                return line
            except Broken as error:
                reason = str(error)
                line.close()
                if isinstance(error, OtherCertificate):
                    raise SourceFailed(job.peer, reason) from error
            except BaseException:
                line.close()
                raise
    raise SourceFailed(job.peer, reason)


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
    """The bytes to send; `moved` is when the connection last took some."""

    def __init__(self, staged: StagedShard, executor: Executor) -> None:
        self._staged = staged
        self._executor = executor
        self.length = len(staged.leaves) + staged.length
        self.moved = asyncio.get_running_loop().time()

    async def pieces(self) -> AsyncIterator[Bytes]:
        loop = asyncio.get_running_loop()
        yield self._staged.leaves
        file = os.open(self._staged.path, os.O_RDONLY | os.O_CLOEXEC)
        room = memoryview(bytearray(min(_PIECE, self._staged.length)))
        try:
            for at in range(0, self._staged.length, _PIECE):
                piece = room[: min(_PIECE, self._staged.length - at)]
                if not _read_at_once(file, piece, at):
                    await to_the_end(loop.run_in_executor(self._executor, self._read, file, piece, at))
                self.moved = loop.time()
                yield piece
        finally:
            os.close(file)
        self.moved = loop.time()

    def _read(self, file: int, piece: memoryview, at: int) -> None:
        done = 0
        while done < len(piece):
            if not (got := os.preadv(file, [piece[done:]], at + done)):
                raise Unavailable(f"the staged shard {self._staged.path} got shorter while it was sent")
            done += got


def _read_at_once(file: int, piece: memoryview, at: int) -> bool:
    """Whether the piece was read without waiting for the disk, as what was staged a moment ago is: a hop to a thread costs more."""
    try:
        return _NOWAIT != 0 and os.preadv(file, [piece], at, _NOWAIT) == len(piece)
    except OSError:  # not in memory, or a file system that can't tell
        return False
