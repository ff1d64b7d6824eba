"""What was found of lying stages, on the disk: sealed records in SQLite, bounded in rows and bytes, the oldest first out.

A record is durable once `add` returns (WAL, synchronous=FULL). Nothing in the file is believed: each row is its sealed bytes alone, and one
whose seal isn't this node's, or doesn't hold, is named and left out; the statements inside are checked again whenever somebody asks
(`runtime/stage_evidence.py`), offline. A file that can't be read is put aside, never written over. Rows taken out aren't noticed: who
can write here is this node's owner, and the oldest go by themselves.

Rejected: the audit log (append-only, and a node doesn't start on one that was touched: what strangers signed would grow it without end).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlite_utils import Database

from protocol import limits
from protocol.errors import BadInput, Conflict, MfError, StorageFull
from protocol.signing import peer_of
from protocol.stage_evidence import StageEvidence, open_evidence, seal_evidence
from runtime.stage_evidence import fault_of

T = TypeVar("T")
log = logging.getLogger(__name__)
FILE = "evidence.db"
VERSION = 1
MOST_ROWS = 1_000
MOST_BYTES = 64 * limits.MIB
_AT_ONCE = 16
"""Rows in memory while the file is gone through."""
_SUFFIXES = ("", "-wal", "-shm")


@dataclass(frozen=True)
class Kept:
    """One row. `fault`: why its statements don't show what it says; None: they do, or nobody looked."""

    number: int
    evidence: StageEvidence
    fault: str | None = None


@dataclass(frozen=True)
class Damaged:
    """A row that isn't as it was written."""

    number: int
    fault: str


@dataclass
class Page:
    """`below`: what to ask for next; None: that was all."""

    kept: list[Kept] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    below: int | None = None


class EvidenceStore:
    """`open` before anything else. One thread does all of it; `close` ends it."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey, most_rows: int = MOST_ROWS, most_bytes: int = MOST_BYTES) -> None:
        self._path, self._key = folder / FILE, key
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self._thread = ThreadPoolExecutor(1, "evidence")
        self._db: Database | None = None

    async def open(self) -> list[Damaged]:
        """Opens or makes the file, and checks the seal of every row; what doesn't hold is named here and in the log."""
        return await self._run(self._open)

    async def add(self, make: Callable[[], StageEvidence]) -> int:
        """Keeps what `make` makes, in this store's own thread; its number. `StorageFull` where there is no room."""
        return await self._run(lambda: self._add(seal_evidence(self._key, make())))

    async def read(self, most: int, below: int | None = None, *, verify: bool = False) -> Page:
        """The newest first, those with a number under `below`; `verify` goes through their statements too."""
        return await self._run(lambda: self._read(most, below, verify))

    def close(self) -> None:
        self._thread.submit(self._close)
        self._thread.shutdown(wait=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # In the thread

    def _open(self) -> list[Damaged]:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            self._connect()
            damaged = self._all_damaged()
        except sqlite3.DatabaseError as error:
            self._put_aside(error)
            self._connect()
            damaged = []
        for one in damaged:
            told = {"event": "evidence_damaged", "fields": {"number": one.number, "fault": one.fault}}
            log.error("evidence %d isn't as it was written: %s", one.number, one.fault, extra=told)
        return damaged

    def _all_damaged(self) -> list[Damaged]:
        page = self._read(_AT_ONCE, None, False)
        damaged = page.damaged
        while page.below is not None:
            page = self._read(_AT_ONCE, page.below, False)
            damaged += page.damaged
        return damaged

    def _connect(self) -> None:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._db = db = Database(connection, execute_plugins=False)
        for setting in ("busy_timeout = 5000", "journal_mode = wal", "synchronous = full"):
            connection.execute(f"pragma {setting}")
        (version,) = connection.execute("pragma user_version").fetchone()
        if version > VERSION:
            raise Conflict(f"{self._path} has format {version}, this version knows {VERSION}", hint="run a newer mf-node")
        if version < VERSION:
            with db.atomic():
                db.table("evidence").create({"number": int, "record": bytes}, pk="number", if_not_exists=True)
                db.execute(f"pragma user_version = {VERSION}")
        (found,) = connection.execute("pragma quick_check").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(str(found))

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        self._close()
        for suffix in _SUFFIXES:
            there = self._path.with_name(self._path.name + suffix)
            if there.exists():
                there.replace(self._path.with_name(f"{self._path.name}.damaged{suffix}"))
        log.error("%s can't be read (%s): put aside as .damaged", self._path.name, error, extra={"event": "evidence_put_aside"})
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @property
    def _rows(self) -> Database:
        if self._db is None:
            raise MfError("the evidence isn't open")
        return self._db

    def _add(self, record: bytes) -> int:
        db = self._rows
        try:
            with db.atomic():
                number = int(db.execute("insert into evidence (record) values (?)", [record]).lastrowid or 0)
                self._let_go(db)
                return number
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise StorageFull(f"no room to write {self._path}") from error
            raise

    def _let_go(self, db: Database) -> None:
        """The oldest beyond the bounds."""
        rows = total = 0
        for number, size in db.execute("select number, length(record) from evidence order by number desc").fetchall():
            rows, total = rows + 1, total + (size or 0)
            if rows > self._most_rows or total > self._most_bytes:
                db.table("evidence").delete_where("number <= ?", [number])
                return

    def _read(self, most: int, below: int | None, verify: bool) -> Page:
        page, mine = Page(), peer_of(self._key)
        query = "select number, record from evidence where ? is null or number < ? order by number desc limit ?"
        for taken, (number, record) in enumerate(self._rows.execute(query, [below, below, most + 1])):
            if taken == most:
                return page
            page.below = number
            try:
                keeper, evidence = open_evidence(record if isinstance(record, bytes) else b"")
                if keeper != mine:
                    raise BadInput(f"it was kept by {keeper}, not by this node")
            except BadInput as error:
                page.damaged.append(Damaged(number, error.message))
                continue
            page.kept.append(Kept(number, evidence, fault_of(evidence) if verify else None))
        page.below = None
        return page

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
