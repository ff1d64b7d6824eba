"""Checks a shard leaf by leaf while its bytes stream in, in whatever cuts they come."""

from __future__ import annotations

from blake3 import blake3

from node.store.interface import ShardInfo, ShardReader
from protocol import limits
from protocol.encoding import leaf_count, shard_root
from protocol.errors import BadInput
from protocol.ids import encoding_text


def check_leaves(info: ShardInfo, leaves: bytes, root: bytes) -> None:
    """`BadInput` unless the leaf list has one digest per leaf and gives the root."""
    if not 0 <= info.key.shard < limits.MAX_SHARDS or info.bytes < 0 or len(info.key.encoding) != 32 or len(info.model) != 32:
        raise BadInput(f"not a shard: number {info.key.shard}, {info.bytes} bytes")
    if len(leaves) != 32 * leaf_count(info.bytes):
        raise BadInput(f"{name_of(info)}: {len(leaves)} bytes of leaf list for {leaf_count(info.bytes)} leaves")
    if shard_root(info.bytes, leaves) != root:
        raise BadInput(f"{name_of(info)}: the leaf list doesn't give the encoding's root")


def name_of(info: ShardInfo) -> str:
    return f"shard {info.key.shard} of {encoding_text(info.key.encoding)}"


def first_bad_leaf(reader: ShardReader) -> int | None:
    """Reads a whole shard; the first leaf that isn't what the list says, None when all are right."""
    leaves = reader.leaves()
    for index in range(leaf_count(reader.length)):
        data = reader.read(index * limits.LEAF, min(limits.LEAF, reader.length - index * limits.LEAF))
        if blake3(data).digest() != leaves[32 * index : 32 * index + 32]:
            return index
    return None


class LeafCheck:
    """Feed the shard's bytes in order. `BadInput` at the first leaf that doesn't match; from then on nothing passes."""

    def __init__(self, info: ShardInfo, leaves: bytes) -> None:
        self._info = info
        self._leaves = leaves
        self._hasher = blake3()
        self._seen = 0
        self._broken = False

    def feed(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if self._broken or self._seen + len(view) > self._info.bytes:
            self._broken = True
            raise BadInput(f"{name_of(self._info)}: more bytes than its {self._info.bytes}, or after a wrong leaf")
        while view:
            take = min(len(view), limits.LEAF - self._seen % limits.LEAF)
            self._hasher.update(view[:take])
            self._seen += take
            view = view[take:]
            if self._seen % limits.LEAF == 0 or self._seen == self._info.bytes:
                self._close_leaf()

    def _close_leaf(self) -> None:
        index = (self._seen - 1) // limits.LEAF
        if self._hasher.digest() != self._leaves[32 * index : 32 * index + 32]:
            self._broken = True
            raise BadInput(f"{name_of(self._info)}: leaf {index} is not what its digest says", details={"leaf": index})
        self._hasher = blake3()

    def finish(self) -> None:
        """`BadInput` when bytes are missing."""
        if self._broken or self._seen != self._info.bytes:
            raise BadInput(f"{name_of(self._info)}: {self._seen} right bytes came of {self._info.bytes}")
