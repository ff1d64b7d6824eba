"""Cards, searched and sorted: SQLite's FTS5 in memory, on a thread of its own.

The swarm's cards are the truth; this is made from them at start and kept up as they change, so nothing of it lies on a disk. Filters have
indexes, words are found as prefixes and ranked by bm25, and the number of matches is kept until the cards change: counting is what
takes the time when a hundred thousand match.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_WORD = re.compile(r"\w+")
MAX_WORDS = 16
_COUNTS_KEPT = 1_024
_SCHEMA = """
create table models (
  id integer primary key, key text not null unique, model text not null, name text not null collate nocase, words text not null,
  category text, framework text, parameters integer not null, size integer not null, created real not null, popularity integer not null
);
create index by_name on models (name, key);
create index by_popularity on models (popularity, key);
create index by_size on models (size, key);
create index by_created on models (created, key);
create index by_model on models (model);
create virtual table searched using fts5 (words, content = models, content_rowid = id, prefix = '2 3');
create trigger added after insert on models begin insert into searched (rowid, words) values (new.id, new.words); end;
create trigger gone after delete on models begin insert into searched (searched, rowid, words) values ('delete', old.id, old.words); end;
"""
_ORDERS = {"name": "name", "popularity": "popularity", "size": "size", "created_at": "created"}


@dataclass(frozen=True)
class Entry:
    """One card as it is searched; `key` names the card (publisher, name, version), `words` are what a search looks in."""

    key: str
    model: str
    name: str
    words: str
    category: str | None
    framework: str | None
    parameters: int
    size: int
    created: float
    popularity: int


@dataclass(frozen=True)
class ModelQuery:
    """`sort` relevance (of a search; else by name), name, popularity, size or created_at; `order` None: what one expects of it."""

    search: str | None = None
    category: str | None = None
    framework: str | None = None
    min_parameters: int | None = None
    max_parameters: int | None = None
    sort: str = "relevance"
    order: str | None = None
    limit: int = 20
    offset: int = 0


class ModelIndex:
    """`open` first. Entries come and go by `update`; `find` gives keys of a page and how many match."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "models")
        self._db: sqlite3.Connection | None = None
        self._counts: dict[tuple[str, tuple[object, ...]], int] = {}

    async def update(self, entries: Sequence[Entry], gone: Iterable[str] = ()) -> None:
        """Puts these in, in place of those of the same key, and takes `gone` out."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._update, entries, list(gone))

    async def find(self, query: ModelQuery) -> tuple[list[str], int]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, query)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._db.executescript(_SCHEMA)
        return self._db

    def _update(self, entries: Sequence[Entry], gone: list[str]) -> None:
        db = self._opened()
        self._counts.clear()
        db.execute("begin")
        db.executemany("delete from models where key = ?", [(key,) for key in [*gone, *(entry.key for entry in entries)]])
        db.executemany(
            "insert into models (key, model, name, words, category, framework, parameters, size, created, popularity) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [tuple(getattr(one, column) for column in Entry.__dataclass_fields__) for one in entries],
        )
        db.execute("commit")
        if len(entries) >= 1_000:
            db.execute("insert into searched (searched) values ('optimize')")
            db.execute("analyze")

    def _find(self, query: ModelQuery) -> tuple[list[str], int]:
        db = self._opened()
        source, where, values = _matching(query)
        counted = (where, tuple(values))
        total = self._counts.get(counted)
        if total is None:
            total = int(db.execute(f"select count(*) from {source}{where}", values).fetchone()[0])
            if len(self._counts) >= _COUNTS_KEPT:
                self._counts.clear()
            self._counts[counted] = total
        rows = db.execute(f"select key from {source}{where}{_order(query)} limit ? offset ?", [*values, query.limit, query.offset])
        return [key for (key,) in rows], total


def match_of(search: str | None) -> str | None:
    """The search in FTS5's language: every word, as a prefix, nothing of it an operator."""
    words = _WORD.findall(search or "")[:MAX_WORDS]
    return " ".join(f'"{word}"*' for word in words) or None


def _matching(query: ModelQuery) -> tuple[str, str, list[object]]:
    """(tables, where clause, its values)."""
    match = match_of(query.search)
    tests: list[tuple[str, object]] = [("searched match ?", match)] if match else []
    for test, value in (
        ("category = ?", query.category),
        ("framework = ?", query.framework),
        ("parameters >= ?", query.min_parameters),
        ("parameters <= ?", query.max_parameters),
    ):
        if value is not None:
            tests.append((test, value))
    source = "searched join models on models.id = searched.rowid" if match else "models"
    where = " where " + " and ".join(test for test, _ in tests) if tests else ""
    return source, where, [value for _, value in tests]


def _order(query: ModelQuery) -> str:
    if query.sort == "relevance" and match_of(query.search):
        return " order by searched.rank" if query.order != "asc" else " order by searched.rank desc"
    column = _ORDERS.get(query.sort, "name")
    way = query.order or ("asc" if column == "name" else "desc")
    down = "desc" if way == "desc" else "asc"
    return f" order by models.{column} {down}, models.key {down}"
