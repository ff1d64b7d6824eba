"""The index of shard files in SQLite: quick answers, no truth. It can be deleted at any time between two starts.

Every start compares it with the folder, so a commit lost with the power costs nothing: WAL with synchronous=NORMAL
can lose the last commits but never damages the file. One connection under a lock; the store's callers are executors.

Each row carries a check over its other columns, so that one that rotted is no row: it is missed at the next start and made again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from blake3 import blake3
from sqlite_utils import Database

from node.store.interface import ShardInfo, ShardKey
from protocol.ids import EncodingId, ModelId

VERSION = 2
_COLUMNS = {
    "encoding": bytes, "shard": int, "model": bytes, "group_index": int, "bytes": int, "put_at": float, "owner": str, "file_bytes": int,
    "sum": bytes,
}  # fmt: skip
_KEY = "encoding = ? and shard = ?"


def _info(row: dict[str, object]) -> ShardInfo:
    key = ShardKey(EncodingId(bytes(row["encoding"])), int(row["shard"]))  # type: ignore[call-overload]
    return ShardInfo(key, ModelId(bytes(row["model"])), int(row["group_index"]), int(row["bytes"]), float(row["put_at"]), str(row["owner"]))  # type: ignore[call-overload, arg-type]


def _sum(row: Mapping[str, object]) -> bytes:
    """Of all columns but itself."""
    return blake3(repr([row[column] for column in _COLUMNS if column != "sum"]).encode()).digest(length=16)


class ShardIndex:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def open(self) -> None:
        """Opens or makes it; a damaged one or one of another version is made anew."""
        try:
            self._connect()
            if self._db.execute("pragma user_version").fetchone()[0] == VERSION and self._db.table("shards").exists():
                return
        except sqlite3.DatabaseError:
            pass
        self.remake()

    def remake(self) -> None:
        """An empty one in its place."""
        self._db.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._connect()
        self._db.table("shards").create(_COLUMNS, pk=("encoding", "shard"))
        self._db.execute(f"pragma user_version = {VERSION}")

    def _connect(self) -> None:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._db = Database(connection, execute_plugins=False)
        connection.execute("pragma busy_timeout = 5000")
        connection.execute("pragma synchronous = normal")
        self._db.enable_wal()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(self, infos: Iterable[tuple[ShardInfo, int]]) -> None:
        """Rows of (shard, bytes of its file); returns once committed."""
        rows: list[dict[str, object]] = [
            {
                "encoding": info.key.encoding, "shard": info.key.shard, "model": info.model, "group_index": info.group,
                "bytes": info.bytes, "put_at": info.put_at, "owner": info.owner, "file_bytes": size,
            }
            for info, size in infos
        ]  # fmt: skip
        for row in rows:
            row["sum"] = _sum(row)
        with self._lock, self._db.atomic():
            self._db.table("shards").insert_all(rows, replace=True)

    def remove(self, keys: Iterable[ShardKey]) -> None:
        with self._lock, self._db.atomic():
            for key in keys:
                self._db.table("shards").delete_where(_KEY, [key.encoding, key.shard])

    def find(self, key: ShardKey) -> tuple[ShardInfo, int] | None:
        """The shard and its file's bytes."""
        with self._lock:
            rows = list(self._db.table("shards").rows_where(_KEY, [key.encoding, key.shard]))
        return (_info(rows[0]), int(rows[0]["file_bytes"])) if rows and rows[0]["sum"] == _sum(rows[0]) else None

    def of_encodings(self, encodings: Iterable[bytes]) -> list[ShardInfo]:
        with self._lock:
            return [_info(row) for encoding in encodings for row in self._db.table("shards").rows_where("encoding = ?", [encoding])]

    def rows(self) -> dict[ShardKey, tuple[ShardInfo, int]]:
        with self._lock:
            rows = list(self._db.table("shards").rows)
        return {(info := _info(row)).key: (info, int(row["file_bytes"])) for row in rows if row["sum"] == _sum(row)}

    def check(self) -> None:
        """`sqlite3.DatabaseError` when the file rotted elsewhere than in the rows' columns."""
        try:
            (found,) = self._db.execute("pragma integrity_check").fetchone()
            self.rows()
        except (KeyError, UnicodeDecodeError) as error:  # the table's own description
            raise sqlite3.DatabaseError(f"damaged: {error}") from error
        if found != "ok":
            raise sqlite3.DatabaseError(str(found))
