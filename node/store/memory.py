"""The store in memory: for simulated nodes and tests, under the same obligations as the disk's."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from node.store.interface import ShardInfo, ShardKey, Space
from node.store.keeping import doomed, for_model, unneeded
from node.store.leaf_check import LeafCheck, check_leaves
from node.store.room import Room
from protocol import limits
from protocol.errors import TooLarge
from protocol.ids import ModelId, digest

_Lying = tuple[ShardInfo, bytes, bytes]


class MemoryReader:
    def __init__(self, leaves: bytes, data: bytes) -> None:
        self._leaves, self._data = leaves, data

    @property
    def length(self) -> int:
        return len(self._data)

    def leaves(self) -> bytes:
        return self._leaves

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def read_into(self, offset: int, view: memoryview) -> int:
        data = self._data[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    read_cached = read_into

    def will_read(self, offset: int, length: int) -> None:
        """It is in memory."""

    def close(self) -> None:
        """Nothing is held."""


class MemoryWriter:
    def __init__(self, store: MemoryStore, info: ShardInfo, leaves: bytes) -> None:
        self._store, self._info, self._leaves = store, info, leaves
        self._check = LeafCheck(info, leaves)
        self._data = bytearray()
        self._open = True

    def write(self, data: bytes | memoryview) -> None:
        self._check.feed(data)
        self._data += data

    def commit(self) -> None:
        self._check.finish()
        if self._open:
            self._open = False
            self._store.place(self._info, self._leaves, bytes(self._data))

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._store.release(self._info.bytes + len(self._leaves))


class MemoryStore:
    """`quota` in bytes counts shards with their leaf lists, and blobs."""

    def __init__(self, quota: int) -> None:
        self.removals = 0
        self._shards: dict[ShardKey, _Lying] = {}
        self._blobs: dict[bytes, bytes] = {}
        self._models: dict[ModelId, list[bytes]] = {}
        self._room = Room(quota, "memory", lambda: (quota, quota), reserve=0)
        self._lock = threading.RLock()

    def put_blob(self, data: bytes) -> bytes:
        if len(data) > limits.MAX_BLOB:
            raise TooLarge(f"a blob of {len(data)} bytes, at most {limits.MAX_BLOB} allowed")
        blob = digest(data)
        with self._lock:
            if blob not in self._blobs:
                self._room.take(len(data))
                self._room.settled(len(data))
                self._blobs[blob] = bytes(data)
        return blob

    def get_blob(self, blob: bytes) -> bytes | None:
        return self._blobs.get(blob)

    def put_shard(self, info: ShardInfo, leaves: bytes, root: bytes) -> MemoryWriter:
        check_leaves(info, leaves, root)
        self._room.take(info.bytes + len(leaves))
        return MemoryWriter(self, info, leaves)

    def place(self, info: ShardInfo, leaves: bytes, data: bytes) -> None:
        """A writer's verified bytes become the shard; an older one of the same key goes."""
        with self._lock:
            self.drop_shard(info.key, "replaced")
            self._shards[info.key] = (info, leaves, data)
            self._room.settled(len(data) + len(leaves))

    def release(self, size: int) -> None:
        self._room.give_back(size, pending=True)

    def open_shard(self, key: ShardKey) -> MemoryReader | None:
        found = self._shards.get(key)
        return MemoryReader(found[1], found[2]) if found else None

    def has(self, key: ShardKey) -> bool:
        return key in self._shards

    def list_shards(self, model: ModelId | None = None) -> list[ShardInfo]:
        with self._lock:
            return for_model([found[0] for found in self._shards.values()], self._models, model)

    def drop_shard(self, key: ShardKey, reason: str) -> None:
        with self._lock:
            found = self._shards.pop(key, None)
        if found:
            self.removals += 1
            self._room.give_back(len(found[1]) + len(found[2]))

    def add_model(self, model: ModelId, blobs: Sequence[bytes]) -> None:
        self._models[model] = list(blobs)

    def models(self) -> dict[ModelId, list[bytes]]:
        return {model: list(blobs) for model, blobs in self._models.items()}

    def prune(self, blobs: Sequence[bytes]) -> None:
        with self._lock:
            for blob in unneeded([found[0] for found in self._shards.values()], self._models, blobs):
                self._room.give_back(len(self._blobs.pop(blob, b"")))

    def forget(self, model: ModelId) -> int:
        with self._lock:
            before = self._room.space().used
            shards, blobs = doomed([found[0] for found in self._shards.values()], self._models, model)
            self._models.pop(model, None)
            for key in shards:
                self.drop_shard(key, "forgotten")
            for blob in blobs:
                self._room.give_back(len(self._blobs.pop(blob, b"")))
            return before - self._room.space().used

    def space(self) -> Space:
        return self._room.space()
