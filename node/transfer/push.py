"""A shard, staged or held, sent to the node that will keep it: PUT of leaf list and bytes, answered 201 once durable there."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Protocol

from node.store.interface import ShardKey, ShardStore
from node.transfer.finishing import to_the_end
from node.transfer.jobs import PushShard
from node.transfer.lines import SILENT_AT_MOST, Broken, Bytes, Line, Lines, OtherCertificate
from node.transfer.sources import MAX_ERROR, MAX_URLS, Access, Connections, SourceFailed, refusal, shard_path
from node.transfer.staging import StagedShard, Staging
from protocol import limits
from protocol.errors import DeadlineExceeded, NotFound, Unavailable
from protocol.grants import header_from
from protocol.ids import EncodingId, encoding_text

log = logging.getLogger(__name__)

SLOWEST = 256 * limits.KIB
"""Bytes per second below which a push is given up."""

STALLED_AFTER = 20.0
GRACE = 60.0
_PIECE = 256 * limits.KIB
"""Larger ones are copied again and again by TLS while the socket takes them (see `door.py`)."""

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_LOOK_EVERY = 0.5


class Outgoing(Protocol):
    """A shard to send: a `ShardReader` is one."""

    @property
    def length(self) -> int: ...

    def leaves(self) -> bytes: ...

    def read_into(self, offset: int, view: memoryview) -> int: ...

    def read_cached(self, offset: int, view: memoryview) -> int: ...

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

    def read_into(self, offset: int, view: memoryview) -> int:
        done = 0
        while done < len(view) and (got := os.preadv(self._file, [view[done:]], offset + done)):
            done += got
        return done

    def read_cached(self, offset: int, view: memoryview) -> int:
        try:
            return os.preadv(self._file, [view], offset, _NOWAIT) if _NOWAIT else 0
        except OSError:  # not in memory, or a file system that can't tell
            return 0

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

    def __init__(self, shard: Outgoing, executor: Executor) -> None:
        self._shard = shard
        self._executor = executor
        self.length = len(shard.leaves()) + shard.length
        self.moved = asyncio.get_running_loop().time()

    async def pieces(self) -> AsyncIterator[Bytes]:
        loop = asyncio.get_running_loop()
        yield self._shard.leaves()
        room = memoryview(bytearray(min(_PIECE, self._shard.length)))
        for at in range(0, self._shard.length, _PIECE):
            piece = room[: min(_PIECE, self._shard.length - at)]
            # At once where it needs no wait for the disk, as for what was staged a moment ago: a hop to a thread costs more.
            if self._shard.read_cached(at, piece) != len(piece):
                await to_the_end(loop.run_in_executor(self._executor, self._read, piece, at))
            self.moved = loop.time()
            yield piece
        self.moved = loop.time()

    def _read(self, piece: memoryview, at: int) -> None:
        if self._shard.read_into(at, piece) != len(piece):
            raise Unavailable("the shard got shorter while it was sent")
