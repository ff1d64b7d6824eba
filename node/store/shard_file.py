"""A shard's file: the truth about that shard. The index can be made again from these alone.

    "MFSHARD1" | header length, 4 bytes big-endian | header (msgpack) | leaf list, 32 bytes each | shard bytes

A file stands under its name only when every leaf was checked and the bytes are on the disk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from node.store.durable import disk_errors
from node.store.format import FORMAT
from node.store.interface import ShardInfo, ShardKey
from protocol import limits
from protocol.encoding import leaf_count, shard_root
from protocol.errors import BadInput
from protocol.framing import Record, pack, unpack
from protocol.ids import EncodingId, ModelId, digest

MAGIC = b"MFSHARD1"
MAX_HEADER = 4 * limits.KIB
_NAME = re.compile(r"([0-9a-f]{64})\.([0-9]{1,3})")


class Header(Record):
    """`root` is the encoding's for this shard, `length` the shard's bytes, `put_at` Unix seconds, `owner` who put it; `check` a digest of
    the header without it, against rot: files written before it came have none."""

    format: int
    model: bytes
    group: int
    encoding: bytes
    shard: int
    root: bytes
    length: int
    owner: str
    put_at: float
    check: bytes | None = None


def _check_of(header: Header) -> bytes:
    return digest(pack(msgspec.structs.replace(header, check=None)))[:16]


def file_name(key: ShardKey) -> str:
    return f"{key.encoding.hex()}.{key.shard}"


def key_of(name: str) -> ShardKey | None:
    """The shard a file name stands for, None for a name that isn't one."""
    match = _NAME.fullmatch(name)
    return ShardKey(EncodingId(bytes.fromhex(match[1])), int(match[2])) if match else None


def head_bytes(info: ShardInfo, leaves: bytes, root: bytes) -> bytes:
    """All that stands before the shard's bytes."""
    told = Header(
        format=FORMAT, model=info.model, group=info.group, encoding=info.key.encoding, shard=info.key.shard,
        root=root, length=info.bytes, owner=info.owner, put_at=info.put_at,
    )  # fmt: skip
    told.check = _check_of(told)
    header = pack(told)
    if len(header) > MAX_HEADER:
        raise BadInput(f"the header of shard {info.key.shard} takes {len(header)} bytes, at most {MAX_HEADER} allowed")
    return MAGIC + len(header).to_bytes(4, "big") + header + leaves


def read_info(path: Path) -> ShardInfo:
    """What a file says it is, its name, size and leaf list checked against its header; `BadInput` when it isn't a whole shard."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = os.pread(fd, 12, 0)
        size = int.from_bytes(start[8:], "big")
        if start[:8] != MAGIC or len(start) < 12 or size > MAX_HEADER:
            raise BadInput(f"{path}: not a shard file")
        header = unpack(os.pread(fd, size, 12), Header, str(path), MAX_HEADER)
        _check(header, path, os.fstat(fd).st_size - 12 - size)
        leaves = os.pread(fd, 32 * leaf_count(header.length), 12 + size)
    finally:
        os.close(fd)
    if shard_root(header.length, leaves) != header.root:
        raise BadInput(f"{path}: its leaf list doesn't give its root")
    return _info(header)


def _info(header: Header) -> ShardInfo:
    key = ShardKey(EncodingId(header.encoding), header.shard)
    return ShardInfo(key, ModelId(header.model), header.group, header.length, header.put_at, header.owner)


def _check(header: Header, path: Path, rest: int) -> None:
    if header.format > FORMAT:
        raise BadInput(f"{path}: format {header.format}, this version knows up to {FORMAT}")
    if header.check is not None and header.check != _check_of(header):
        raise BadInput(f"{path}: its header was damaged")
    if file_name(ShardKey(EncodingId(header.encoding), header.shard)) != path.name or len(header.model) != 32:
        raise BadInput(f"{path}: the header names another shard")
    if not 0 <= header.length <= rest or rest != header.length + 32 * leaf_count(header.length):
        raise BadInput(f"{path}: {rest} bytes after the header, a shard of {header.length} bytes has other")


_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class DiskReader:
    """Reads by place: the leaf list and the shard lie at the file's end, so a damaged header doesn't matter here."""

    def __init__(self, path: Path, length: int) -> None:
        self._path, self._length = path, length
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._data_at = os.fstat(self._fd).st_size - length

    @property
    def length(self) -> int:
        return self._length

    def leaves(self) -> bytes:
        size = 32 * leaf_count(self._length)
        return self._pread(size, self._data_at - size)

    def read(self, offset: int, length: int) -> bytes:
        return self._pread(max(0, min(length, self._length - offset)), self._data_at + offset)

    def read_into(self, offset: int, view: memoryview) -> int:
        done, most = 0, max(0, min(len(view), self._length - offset))
        with disk_errors(self._path):
            while done < most and (got := os.preadv(self._fd, [view[done:most]], self._data_at + offset + done)):
                done += got
        return done

    def read_cached(self, offset: int, view: memoryview) -> int:
        most = max(0, min(len(view), self._length - offset))
        try:
            return os.preadv(self._fd, [view[:most]], self._data_at + offset, _NOWAIT) if most and _NOWAIT else 0
        except OSError:  # not in memory, or a file system that can't tell
            return 0

    def mark(self) -> object | None:
        found = os.fstat(self._fd)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def will_read(self, offset: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, self._data_at + offset, length, os.POSIX_FADV_WILLNEED)

    def _pread(self, length: int, at: int) -> bytes:
        with disk_errors(self._path):
            data = os.pread(self._fd, length, at)
            while len(data) < length and (more := os.pread(self._fd, length - len(data), at + len(data))):
                data += more
        return data

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
