"""The store in memory: for simulated nodes and tests, under the same obligations as the disk's."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from node.store.interface import ShardInfo, ShardKey, Space
from node.store.keeping import doomed, first_homes, for_model, home_of_shared, unneeded
from node.store.leaf_check import LeafCheck, check_leaves
from node.store.leases import GRACE, Collected, ended, stale
from node.store.room import Room
from protocol import limits
from protocol.errors import TooLarge
from protocol.ids import EncodingId, ModelId, digest

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

    def mark(self) -> object | None:
        return None

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
        self._renewed: dict[ShardKey, float] = {}
        self._unneeded_since: dict[bytes, float] = {}
        self._pins: set[ModelId] = set()
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
            self._renewed[info.key] = info.put_at
            self._room.settled(len(data) + len(leaves))
            if (listed := home_of_shared(info, self._models)) is not None:
                self._models[info.model] = listed

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
            self._renewed.pop(key, None)
        if found:
            self.removals += 1
            self._room.give_back(len(found[1]) + len(found[2]))

    def add_model(self, model: ModelId, blobs: Sequence[bytes]) -> None:
        with self._lock:
            self._models |= first_homes([found[0] for found in self._shards.values()], self._models, blobs)
            self._models[model] = list(blobs)

    def share(self, model: ModelId, encodings: Sequence[EncodingId]) -> None:
        with self._lock:
            self.add_model(model, list(dict.fromkeys([*self._models.get(model, [model]), *encodings])))

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
            self._pins.discard(model)
            for key in shards:
                self.drop_shard(key, "forgotten")
            for blob in blobs:
                self._room.give_back(len(self._blobs.pop(blob, b"")))
            return before - self._room.space().used

    def renew(self, keys: Iterable[ShardKey], now: float) -> None:
        with self._lock:
            self._renewed |= dict.fromkeys(stale(self._renewed, keys, now), now)

    def renewed(self) -> dict[ShardKey, float]:
        with self._lock:
            return dict(self._renewed)

    def pin(self, model: ModelId) -> None:
        self._pins.add(model)

    def unpin(self, model: ModelId) -> None:
        self._pins.discard(model)

    def pins(self) -> set[ModelId]:
        return set(self._pins)

    def collect(self, now: float) -> Collected:
        with self._lock:
            before = self._room.space().used
            gone = ended(self.list_shards(), self._renewed, self._models, self._pins, now)
            for info in gone:
                self.drop_shard(info.key, "its lease ended")
            loose = unneeded(self.list_shards(), self._models, list(self._blobs))
            # Without files there are no times of putting: the grace runs from the first collection that saw it unneeded.
            self._unneeded_since = {blob: self._unneeded_since.get(blob, now) for blob in loose}
            old = [blob for blob, since in self._unneeded_since.items() if now - since > GRACE]
            for blob in old:
                self._room.give_back(len(self._blobs.pop(blob)))
            return Collected(gone, len(old), before - self._room.space().used)

    def space(self) -> Space:
        return self._room.space()
