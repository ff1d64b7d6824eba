"""The store on the disk. Files are the truth, SQLite only finds them.

    format          the layout's number        shards/    one file a shard (see `shard_file`)
    index.sqlite    deletable                  blobs/     manifests and encodings, named by their id
    store.lock      held while open            models/    which blobs belong to a model
    incoming/       unfinished files, removed at start      pins/  an empty file for each model its owner pinned

A shard file's time of change is when its lease was renewed last: it needs no other place that could disagree.

A kill at any point costs what was not acknowledged and nothing else: names appear by rename after fdatasync
(`durable`), and each start compares index and folders. It compares names and sizes only, so that a restart is quick;
rotten bytes are found by scrubbing and by readers. Rejected: shards inside SQLite (a copy more, vacuum), one folder
per encoding (an fsync more), trusting the index alone (it would have to be synced twice).
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from node.store.durable import disk_errors, remove_quietly, settle, sync_folder, write_all, write_file
from node.store.format import open_format
from node.store.index import ShardIndex
from node.store.interface import ShardInfo, ShardKey, Space
from node.store.keeping import doomed, first_homes, for_model, home_of_shared, unneeded
from node.store.leaf_check import LeafCheck, check_leaves
from node.store.leases import GRACE, Collected, ended, stale
from node.store.room import Room
from node.store.shard_file import DiskReader, file_name, head_bytes, key_of, read_info
from protocol import limits
from protocol.errors import BadInput, Conflict, TooLarge
from protocol.framing import pack, unpack_plain
from protocol.ids import EncodingId, ModelId, digest

log = logging.getLogger(__name__)
_ID = re.compile("[0-9a-f]{64}")
_FOLDERS = ("shards", "blobs", "models", "pins", "incoming")


class DiskWriter:
    """One shard on its way in. Room for the whole file is reserved when it is made."""

    def __init__(self, store: DiskStore, info: ShardInfo, leaves: bytes, head: bytes) -> None:
        self._store, self._info = store, info
        self._check = LeafCheck(info, leaves)
        self._size = len(head) + info.bytes
        fd, name = tempfile.mkstemp(dir=store.root / "incoming", prefix="shard-")
        self._fd, self._temp = fd, Path(name)
        self._head: bytes | None = head

    def write(self, data: bytes | memoryview) -> None:
        self._check.feed(data)
        with disk_errors(self._temp, writing=True):
            self._write_head()
            write_all(self._fd, data)

    def _write_head(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            write_all(self._fd, head)

    def commit(self) -> None:
        self._check.finish()
        if self._fd < 0:
            return
        with disk_errors(self._temp, writing=True):
            self._write_head()
            os.utime(self._fd, (self._info.put_at, self._info.put_at))
            self._store.settle_shard(self._fd, self._temp, self._info, self._size)
            os.close(self._fd)
            self._fd = -1

    def abort(self) -> None:
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        remove_quietly(self._temp)
        self._store.release(self._size)


class DiskStore:
    """`quota` in bytes counts whole shard files and blobs; `reserve` bytes of the disk stay free (default 5 %, at most 1 GiB)."""

    def __init__(self, root: Path, quota: int, reserve: int | None = None) -> None:
        self.root = root
        self.removals = 0
        self._index = ShardIndex(root / "index.sqlite")
        self._room = Room(quota, root, self._disk, reserve)
        self._models: dict[ModelId, list[bytes]] = {}
        self._renewed: dict[ShardKey, float] = {}
        self._pins: set[ModelId] = set()
        self._lock = threading.RLock()
        self._lock_fd = -1

    def open(self) -> None:
        """Locks, checks the format, removes leftovers and brings the index in line with the files."""
        open_format(self.root)
        with disk_errors(self.root):
            self._lock_folder()
            for name in _FOLDERS:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
                # A name that a killed process gave counts from now on as if it had been acknowledged: make it durable first.
                sync_folder(self.root / name)
            for left in [*(self.root / "incoming").iterdir(), *self.root.glob(".new-*")]:
                left.unlink(missing_ok=True)
            self._open_index()
            self._models = dict(self._read_models())
            self._pins = {ModelId(bytes.fromhex(path.name)) for path in (self.root / "pins").iterdir() if _ID.fullmatch(path.name)}
            self._room.count(self._reconcile() + sum(entry.stat().st_size for entry in os.scandir(self.root / "blobs")))

    def _open_index(self) -> None:
        self._index.open()
        try:
            self._index.check()
        except sqlite3.DatabaseError as error:
            log.warning("the index is made again: %s", error, extra={"event": "index_damaged"})
            self._index.remake()

    def close(self) -> None:
        if self._lock_fd >= 0:
            self._index.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock_folder(self) -> None:
        fd = os.open(self.root / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Conflict(
                f"the store in {self.root} is in use by another process", hint="stop that node, or choose another --data-dir"
            ) from None
        self._lock_fd = fd

    def _disk(self) -> tuple[int, int]:
        with disk_errors(self.root):
            state = os.statvfs(self.root)
        return state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize

    def _read_models(self) -> Iterator[tuple[ModelId, list[bytes]]]:
        for path in (self.root / "models").iterdir():
            try:
                blobs = msgspec.convert(unpack_plain(path.read_bytes(), path.name, limits.MAX_BLOB), list[bytes], builtin_types=(bytes,))
                yield ModelId(bytes.fromhex(path.name)), blobs
            except (BadInput, ValueError) as error:
                log.warning("the model file %s can't be read: %s", path, error)

    def _reconcile(self) -> int:
        """Bytes of all shard files, after the index lists exactly the whole ones."""
        rows = self._index.rows()
        found: dict[ShardKey, int] = {}
        self._renewed = {}
        added: list[tuple[ShardInfo, int]] = []
        for entry in os.scandir(self.root / "shards"):
            key, size = key_of(entry.name), entry.stat().st_size
            known = rows.get(key) if key else None
            if known is None or known[1] != size:
                info = self._adopt(Path(entry.path))
                if info is None:
                    continue
                added.append((info, size))
                key = info.key
            if key is not None:
                found[key] = size
                self._renewed[key] = entry.stat().st_mtime
        self._index.remove(key for key in rows if key not in found)
        self._index.add(added)
        return sum(found.values())

    def _adopt(self, path: Path) -> ShardInfo | None:
        try:
            return read_info(path)
        except BadInput as error:
            log.warning("removing a damaged shard file: %s", error, extra={"event": "shard_damaged", "fields": {"file": path.name}})
            path.unlink()
            return None

    def _path(self, key: ShardKey) -> Path:
        return self.root / "shards" / file_name(key)

    def put_blob(self, data: bytes) -> bytes:
        if len(data) > limits.MAX_BLOB:
            raise TooLarge(f"a blob of {len(data)} bytes, at most {limits.MAX_BLOB} allowed")
        blob = digest(data)
        path = self.root / "blobs" / blob.hex()
        with self._lock, disk_errors(path, writing=True):
            if path.exists():
                return blob
            self._room.take(len(data))
            try:
                write_file(path, data, self.root / "incoming")
            except OSError:
                self._room.give_back(len(data), pending=True)
                raise
            self._room.settled(len(data))
        return blob

    def get_blob(self, blob: bytes) -> bytes | None:
        """The blob, None when it isn't here or its bytes went bad (it is removed then)."""
        path = self.root / "blobs" / blob.hex()
        with disk_errors(path):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
        if digest(data) == blob:
            return data
        log.warning("removing a damaged blob %s", path, extra={"event": "blob_damaged", "fields": {"blob": blob.hex()}})
        with self._lock:
            self._drop_blob(blob)
        return None

    def _drop_blob(self, blob: bytes) -> None:
        path = self.root / "blobs" / blob.hex()
        if path.exists():
            size = path.stat().st_size
            path.unlink()
            self._room.give_back(size)

    def put_shard(self, info: ShardInfo, leaves: bytes, root: bytes) -> DiskWriter:
        check_leaves(info, leaves, root)
        head = head_bytes(info, leaves, root)
        size = len(head) + info.bytes
        self._room.take(size)
        try:
            with disk_errors(self.root / "incoming", writing=True):
                return DiskWriter(self, info, leaves, head)
        except BaseException:
            self.release(size)
            raise

    def settle_shard(self, fd: int, temp: Path, info: ShardInfo, size: int) -> None:
        """A writer's verified file gets its name, then its row; an older file of the same key is replaced."""
        with self._lock:
            before = self._index.find(info.key)
            try:
                settle(fd, temp, self._path(info.key))
                self._index.add([(info, size)])
                if (listed := home_of_shared(info, self._models)) is not None:
                    self._list_blobs(info.model, listed)
            except (OSError, sqlite3.Error):
                if before is None:  # a replaced file holds the same bytes: the root is part of its name
                    remove_quietly(self._path(info.key))
                raise
            self._room.settled(size)
            self._renewed[info.key] = info.put_at
            if before:
                self.removals += 1
                self._room.give_back(before[1])

    def release(self, size: int) -> None:
        self._room.give_back(size, pending=True)

    def open_shard(self, key: ShardKey) -> DiskReader | None:
        found = self._index.find(key)
        if found is None:
            return None
        with disk_errors(self._path(key)):
            try:
                return DiskReader(self._path(key), found[0].bytes)
            except FileNotFoundError:
                return None

    def has(self, key: ShardKey) -> bool:
        return self._index.find(key) is not None

    def list_shards(self, model: ModelId | None = None) -> list[ShardInfo]:
        with self._lock:
            return for_model([info for info, _ in self._index.rows().values()], self._models, model)

    def drop_shard(self, key: ShardKey, reason: str) -> None:
        with self._lock, disk_errors(self._path(key)):
            found = self._index.find(key)
            if found is None:
                return
            self._renewed.pop(key, None)
            self._index.remove([key])  # first: a row without a file would be a promise; a file without a row is found at the next start
            self.removals += 1
            self._path(key).unlink(missing_ok=True)
            self._room.give_back(found[1])
            sync_folder(self.root / "shards")
        fields = {"encoding": key.encoding.hex(), "shard": key.shard, "reason": reason}
        log.info(
            "dropped shard %d of %s: %s", key.shard, key.encoding.hex()[:16], reason, extra={"event": "shard_dropped", "fields": fields}
        )

    def add_model(self, model: ModelId, blobs: Sequence[bytes]) -> None:
        path = self.root / "models" / model.hex()
        with self._lock, disk_errors(path, writing=True):
            if self._models.get(model) != list(blobs):
                lying = self._index.of_encodings({*blobs} - {blob for listed in self._models.values() for blob in listed})
                for home, own in first_homes(lying, self._models, blobs).items():
                    if home != model:
                        self._list_blobs(home, own)
                self._list_blobs(model, list(blobs))

    def _list_blobs(self, model: ModelId, blobs: list[bytes]) -> None:
        write_file(self.root / "models" / model.hex(), pack(blobs), self.root / "incoming")
        self._models[model] = blobs

    def share(self, model: ModelId, encodings: Sequence[EncodingId]) -> None:
        with self._lock:
            self.add_model(model, list(dict.fromkeys([*self._models.get(model, [model]), *encodings])))

    def models(self) -> dict[ModelId, list[bytes]]:
        with self._lock:
            return {model: list(blobs) for model, blobs in self._models.items()}

    def prune(self, blobs: Sequence[bytes]) -> None:
        with self._lock, disk_errors(self.root):
            for blob in unneeded([info for info, _ in self._index.rows().values()], self._models, blobs):
                self._drop_blob(blob)

    def renew(self, keys: Iterable[ShardKey], now: float) -> None:
        with self._lock, disk_errors(self.root / "shards", writing=True):
            for key in stale(self._renewed, keys, now):
                os.utime(self._path(key), (now, now))
                self._renewed[key] = now

    def renewed(self) -> dict[ShardKey, float]:
        with self._lock:
            return dict(self._renewed)

    def pin(self, model: ModelId) -> None:
        path = self.root / "pins" / model.hex()
        with self._lock, disk_errors(path, writing=True):
            if model not in self._pins:
                write_file(path, b"", self.root / "incoming")
                self._pins.add(model)

    def unpin(self, model: ModelId) -> None:
        path = self.root / "pins" / model.hex()
        with self._lock, disk_errors(path):
            path.unlink(missing_ok=True)
            self._pins.discard(model)
            sync_folder(path.parent)

    def pins(self) -> set[ModelId]:
        with self._lock:
            return set(self._pins)

    def collect(self, now: float) -> Collected:
        with self._lock, disk_errors(self.root):
            before = self._room.space().used
            gone = ended(self.list_shards(), self._renewed, self._models, self._pins, now)
            for info in gone:
                self.drop_shard(info.key, "its lease ended")
            entries = [entry for entry in os.scandir(self.root / "blobs") if _ID.fullmatch(entry.name)]
            aged = [bytes.fromhex(entry.name) for entry in entries if now - entry.stat().st_mtime > GRACE]
            old = unneeded(self.list_shards(), self._models, aged)
            for blob in old:
                self._drop_blob(blob)
            return Collected(gone, len(old), before - self._room.space().used)

    def forget(self, model: ModelId) -> int:
        with self._lock, disk_errors(self.root):
            before = self._room.space().used
            shards, blobs = doomed([info for info, _ in self._index.rows().values()], self._models, model)
            for key in shards:
                self.drop_shard(key, "forgotten")
            for blob in blobs:
                self._drop_blob(blob)
            # The model's own file goes last: a kill before this leaves a model that can be forgotten again.
            (self.root / "models" / model.hex()).unlink(missing_ok=True)
            sync_folder(self.root / "models")
            self._models.pop(model, None)
            self.unpin(model)
            return before - self._room.space().used

    def space(self) -> Space:
        return self._room.space()
