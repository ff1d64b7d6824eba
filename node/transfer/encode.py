"""One group coded into n staged shards, streamed.

Segments are read, compressed, sealed and coded side by side in the executor, while one writer appends their pieces in order to the
n shard files and hashes leaves. What is in flight is bounded by bytes, not by segments: wide codes have large segments.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from erasure import compression
from erasure.cipher import PUBLIC_SECRET
from erasure.code import Code
from erasure.segment import Room, encode_segment, segment_spans
from node.transfer.finishing import to_the_end
from node.transfer.jobs import Encoded, EncodeGroup, SourceSpan
from node.transfer.staging import Staging, leaves_path
from protocol import limits
from protocol.encoding import (
    COMPRESSIONS,
    PRIVATE_SCHEME,
    SCHEME,
    Encoding,
    Segment,
    parse_encoding,
    seal_encoding,
    segment_plain,
    shard_root,
)
from protocol.errors import BadInput, MfError, StorageFull

IN_FLIGHT = 48 * limits.MIB
SAMPLE = 256 * limits.KIB

Progress = Callable[[int, int], None]
"""(plain bytes done, plain bytes in all)."""

Buffer = bytes | bytearray | memoryview


async def encode_group(
    job: EncodeGroup, fds: Sequence[int], staging: Staging, key: Ed25519PrivateKey, executor: Executor, progress: Progress | None = None
) -> Encoded:
    """Stages the n shards of a group, or those named in `job.stage`, and returns its signed encoding (`shard_bytes` of one shard,
    `stored_bytes` of all n).

    `fds` stay the caller's. On any failure, being cancelled included, nothing stays behind. `BadInput`: the spans don't give
    `length` bytes, or k, n or compression are impossible; `StorageFull`: the disk is.
    """
    loop = asyncio.get_running_loop()
    reader = SpanReader(job.spans, fds, job.length)
    code = Code(job.k, max(job.n, job.n_max))
    making = await to_the_end(loop.run_in_executor(executor, staging.begin))
    files = ShardFiles(making, job.stage or range(job.n), code.n)
    try:
        compressed = await to_the_end(loop.run_in_executor(executor, choose_compression, job, reader))
        segments = await _code_segments(job, reader, code, compressed, files, executor, progress)
        finishing = loop.run_in_executor(executor, _finish, job, compressed, segments, files, staging, key)
        try:
            return await to_the_end(finishing)
        except asyncio.CancelledError:
            if finishing.exception() is None:
                staging.drop(finishing.result().encoding)
            raise
    except OSError as error:
        raise _disk_error(error, making) from error
    finally:
        # Files may only go once no thread writes to them any more: _code_segments has waited for its own.
        files.close()
        staging.abandon(making)


async def _code_segments(
    job: EncodeGroup, reader: SpanReader, code: Code, compressed: str, files: ShardFiles, executor: Executor, progress: Progress | None
) -> list[Segment]:
    loop = asyncio.get_running_loop()
    coding: deque[asyncio.Future[_Coded]] = deque()
    writing: asyncio.Future[None] | None = None
    spans = enumerate(segment_spans(job.k, job.length))
    at_once = max(2, min(8, IN_FLIGHT // (segment_plain(job.k) * (job.k + code.n) // job.k)))
    segments: list[Segment] = []
    # One for each being coded, one being written, one waiting for it.
    rooms = [Room(code) for _ in range(at_once + 2)]
    in_write: Room | None = None
    done = 0

    def start_next() -> None:
        if (following := next(spans, None)) is not None:
            index, (offset, length) = following
            coding.append(loop.run_in_executor(executor, _one_segment, job, reader, offset, length, index, compressed, code, rooms.pop()))

    try:
        for _ in range(at_once):
            start_next()
        while coding:
            coded = await to_the_end(coding[0])
            coding.popleft()
            if writing is not None and in_write is not None:
                await to_the_end(writing)
                rooms.append(in_write)
            writing = loop.run_in_executor(executor, files.append, coded.pieces)
            in_write, segment = coded.room, coded.segment
            segments.append(segment)
            start_next()
            done += segment.plain
            if progress is not None:
                progress(done, job.length)
        if writing is not None:
            await to_the_end(writing)
    finally:
        left: list[asyncio.Future[Any]] = [*coding, *([writing] if writing is not None else [])]
        await to_the_end(asyncio.gather(*left, return_exceptions=True))
    return segments


@dataclass(frozen=True)
class _Coded:
    """`pieces` lie in `room`."""

    segment: Segment
    pieces: list[memoryview]
    room: Room


def _one_segment(
    job: EncodeGroup, reader: SpanReader, offset: int, length: int, index: int, compressed: str, code: Code, room: Room
) -> _Coded:
    plain = room.plain[:length]
    reader.read_into(offset, plain)
    segment, pieces = encode_segment(plain, index, compressed, job.secret or PUBLIC_SECRET, code, room, _scheme(job), job.group_id)
    return _Coded(segment, pieces, room)


def _scheme(job: EncodeGroup) -> str:
    return SCHEME if job.secret is None else PRIVATE_SCHEME


def _finish(
    job: EncodeGroup, compressed: str, segments: list[Segment], files: ShardFiles, staging: Staging, key: Ed25519PrivateKey
) -> Encoded:
    encoding = Encoding(
        group=job.group_id,
        scheme=_scheme(job),
        compression=compressed,
        k=job.k,
        n=job.n,
        length=job.length,
        segments=segments,
        roots=files.finish(),
    )
    same = job.like is not None and parse_encoding(job.like)[1] == encoding
    envelope = job.like if same and job.like is not None else seal_encoding(key, encoding)
    name = staging.finish(files.folder, envelope)
    length = encoding.shard_length()
    return Encoded(envelope=envelope, encoding=name, shard_bytes=length, stored_bytes=length * job.n)


def choose_compression(job: EncodeGroup, reader: SpanReader) -> str:
    """What the job names, or for "auto" and "fast" what suits three samples of the group."""
    if job.compression not in ("auto", "fast"):
        if job.compression not in COMPRESSIONS:
            raise BadInput(f"unknown compression {job.compression[:16]!r}: use auto, fast or one of {', '.join(COMPRESSIONS)}")
        return job.compression
    size = min(SAMPLE, job.length)
    # Offsets are cut to whole elements, else planes of the samples would be turned.
    starts = {at // 8 * 8 for at in (0, (job.length - size) // 2, job.length - size)}
    return compression.choose(b"".join(reader.read(at, size) for at in sorted(starts)), job.element, job.compression == "fast")


def _disk_error(error: OSError, folder: Path) -> MfError:
    return StorageFull(f"staging shards in {folder.parent} failed: {error.strerror}", hint="free some space on that disk")


class SpanReader:
    """The plain bytes of a group, gathered from spans of files; a span with descriptor -1 is zeros. Safe from several threads."""

    def __init__(self, spans: Sequence[SourceSpan], fds: Sequence[int], length: int) -> None:
        if any(span.length < 0 or span.offset < 0 or not -1 <= span.fd < len(fds) for span in spans):
            raise BadInput("encode: a span names a file that wasn't passed, or a negative place")
        self._spans = [span for span in spans if span.length]
        self._starts = list(accumulate((span.length for span in self._spans), initial=0))
        self._fds = fds
        if self._starts[-1] != length:
            raise BadInput(f"encode: the spans give {self._starts[-1]} bytes, the group has {length}")

    def read(self, offset: int, length: int) -> bytearray:
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return out

    def read_into(self, offset: int, view: memoryview) -> None:
        length = len(view)
        number = bisect_right(self._starts, offset) - 1
        done = 0
        while done < length:
            span = self._spans[number]
            skipped = offset + done - self._starts[number]
            take = min(span.length - skipped, length - done)
            if span.fd >= 0:
                _read_fully(self._fds[span.fd], span.offset + skipped, view[done : done + take])
            else:
                view[done : done + take] = bytes(take)
            done += take
            number += 1


def _read_fully(fd: int, offset: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise BadInput(f"a model's file is shorter than when it was looked at: nothing at byte {offset + done}")
        done += got


class ShardFiles:
    """The files of the shards `staged` being filled, piece by piece, and the leaves of all `committed`; one `append` at a time."""

    def __init__(self, folder: Path, staged: Iterable[int], committed: int) -> None:
        self.folder = folder
        self._staged = sorted(set(staged))
        if not self._staged or not 0 <= self._staged[0] <= self._staged[-1] < committed:
            raise BadInput(f"encode: shards 0 to {committed - 1} can be staged, not {self._staged}")
        self._fds: list[int] = []
        self._paths = [folder / str(j) for j in self._staged]
        self._hashers = [LeafHasher() for _ in range(committed)]

    def append(self, pieces: Sequence[Buffer]) -> None:
        if not self._fds:
            self._open()
        for hasher, piece in zip(self._hashers, pieces, strict=True):
            hasher.update(memoryview(piece))
        for fd, shard in zip(self._fds, self._staged, strict=True):
            view = memoryview(pieces[shard])
            while view:
                view = view[os.write(fd, view) :]

    def finish(self) -> list[bytes]:
        """Writes the leaf lists; returns the roots."""
        if not self._fds:
            self._open()
        leaves = [hasher.finish() for hasher in self._hashers]
        for path, shard in zip(self._paths, self._staged, strict=True):
            leaves_path(path).write_bytes(leaves[shard])
        return [shard_root(hasher.length, found) for hasher, found in zip(self._hashers, leaves, strict=True)]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _open(self) -> None:
        for path in self._paths:
            self._fds.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


class LeafHasher:
    """Leaf digests of bytes that come in any cuts."""

    def __init__(self) -> None:
        self.length = 0
        self._digests: list[bytes] = []
        self._open = blake3()
        self._filled = 0

    def update(self, view: memoryview) -> None:
        self.length += len(view)
        while view:
            take = min(limits.LEAF - self._filled, len(view))
            self._open.update(view[:take])
            self._filled += take
            view = view[take:]
            if self._filled == limits.LEAF:
                self._close_leaf()

    def finish(self) -> bytes:
        if self._filled:
            self._close_leaf()
        return b"".join(self._digests)

    def _close_leaf(self) -> None:
        self._digests.append(self._open.digest())
        self._open = blake3()
        self._filled = 0
