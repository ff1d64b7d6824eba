"""The accounts' SQLite file: one thread, one connection, every change durable before it is acknowledged.

What is looked up for each request (keys, revocations) lies in memory beside it; the file is asked at start, at logins and for
changes. A file of an older version is brought up in one transaction. WAL with synchronous=FULL: an acknowledged registration or
revocation outlives the power.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from protocol.errors import Conflict, MfError, StorageFull

T = TypeVar("T")
VERSION = 2
FILE = "accounts.db"
_SCHEMA = """
create table users (
  id text primary key, name text not null unique collate nocase, email text not null, password text not null, seed blob not null,
  public blob not null unique, tier text not null, created real not null, totp text, totp_on integer not null default 0,
  totp_last integer not null default -1
);
create table recovery (user text not null references users(id) on delete cascade, hash blob not null, primary key (user, hash));
create table keys (
  id text primary key, user text references users(id) on delete cascade, hash blob not null unique, public blob not null unique,
  name text not null, scopes text not null, models text, audience text, created real not null, expires real
);
create table families (
  id text primary key, user text not null references users(id) on delete cascade, hash blob not null, created real not null,
  expires real not null
);
create table revoked (id blob primary key, until integer not null);
create table seen (public blob primary key, name text, home text not null, at real not null, tier text);
create table usage (
  who text not null, day text not null, model text not null, requests integer not null, prompt integer not null,
  completion integer not null, primary key (who, day, model)
) without rowid;
"""
_SINCE_2 = """
create table models (
  name text not null, version text not null, model blob not null, owner text not null, created real not null, primary key (name, version)
) without rowid;
create table webhooks (
  id text primary key, who text not null, url text not null, events text not null, secret text not null, created real not null
);
create table notices (
  id text primary key, webhook text not null references webhooks(id) on delete cascade, event text not null, body blob not null,
  due real not null, tries integer not null
);
create index notices_by_due on notices (due);
create table teams (name text primary key collate nocase, owner text not null, created real not null) without rowid;
create table members (
  team text not null references teams(name) on delete cascade, identity blob not null, primary key (team, identity)
) without rowid;
create table private (model blob primary key, secret blob not null, said blob not null);
create table readers (
  model blob not null references private(model) on delete cascade, reader text not null, role text not null, primary key (model, reader)
) without rowid;
"""


class Database:
    """`open` before anything else; `run(work)` gives `work` the connection, inside one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "accounts")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result, once what it changed is on the disk. `StorageFull` where there is no room."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        return await self.run(lambda db: db.execute(query, values).fetchall())

    def close(self) -> None:
        self._thread.submit(self._close)
        self._thread.shutdown(wait=True)

    def _open(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            raise Conflict(
                f"{self._path} can't be read: {error}", hint="restore it, or move it away: its accounts are then gone"
            ) from error

    def _connect(self) -> None:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        connection.row_factory = sqlite3.Row
        for setting in ("busy_timeout = 5000", "journal_mode = wal", "synchronous = full", "foreign_keys = on", "secure_delete = on"):
            connection.execute(f"pragma {setting}")
        (version,) = connection.execute("pragma user_version").fetchone()
        if version > VERSION:
            raise Conflict(f"{self._path} has format {version}, this version knows {VERSION}", hint="run a newer mf-node")
        if version < VERSION:
            connection.executescript(f"begin; {'' if version else _SCHEMA} {_SINCE_2} pragma user_version = {VERSION}; commit;")
        self._connection = connection

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            raise MfError("the accounts aren't open")
        try:
            with self._connection as db:
                db.execute("begin immediate")
                return work(db)
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise StorageFull(f"no room to write {self._path}") from error
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
