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
_WALKED_FROM = 1_000
_OPTIMISED_AFTER = 1_000
"""Changed rows, and a quarter of all, after which it is told how its rows lie: before, filtered searches took thirty times as long."""
_SCHEMA = """
create table models (
  id integer primary key, key text not null unique, publisher text not null, sequence integer not null,
  model text not null, name text not null collate nocase, words text not null,
  category text, framework text, parameters integer not null, size integer not null, created real not null, popularity integer not null
);
create index by_name on models (name, key);
create index by_popularity on models (popularity, key);
create index by_size on models (size, key);
create index by_created on models (created, key);
create index by_model on models (model);
create index by_publisher on models (publisher);
create index by_kind on models (category, framework, parameters);
create index by_parameters on models (parameters);
create virtual table searched using fts5 (words, content = models, content_rowid = id, prefix = '2 3');
create trigger added after insert on models begin insert into searched (rowid, words) values (new.id, new.words); end;
create trigger gone after delete on models begin insert into searched (searched, rowid, words) values ('delete', old.id, old.words); end;
"""
_ORDERS = {"name": "name", "popularity": "popularity", "size": "size", "created_at": "created"}


@dataclass(frozen=True)
class Entry:
    """One card as it is searched; `key` names the card (publisher, name, version), `sequence` numbers its versions, `words` are what a
    search looks in."""

    key: str
    publisher: str
    sequence: int
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
        self._changed = 0
        self._rows = 0
        """As many as there were when it was last optimised."""

    async def update(self, entries: Sequence[Entry], gone: Iterable[str] = ()) -> None:
        """Puts these in, in place of those of the same key, and takes `gone` out."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._update, entries, list(gone))

    async def follow(self, cards: Sequence[tuple[str, Sequence[Entry]]]) -> None:
        """These publishers' entries are now these and no others; those of the same sequence number stay as they are."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._follow, cards)

    async def count_holders(self, holders: Sequence[tuple[str, int]]) -> None:
        """Models by their ids, and how many hold each."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._count_holders, holders)

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
            "insert into models (key, publisher, sequence, model, name, words, category, framework, parameters, size, created, popularity) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [tuple(getattr(one, column) for column in Entry.__dataclass_fields__) for one in entries],
        )
        db.execute("commit")
        self._changed += len(entries) + len(gone)
        if self._changed >= max(_OPTIMISED_AFTER, self._rows // 4):
            self._changed, self._rows = 0, int(db.execute("select count(*) from models").fetchone()[0])
            db.execute("insert into searched (searched) values ('optimize')")
            db.execute("analyze")

    def _follow(self, cards: Sequence[tuple[str, Sequence[Entry]]]) -> None:
        db = self._opened()
        fresh: list[Entry] = []
        gone: list[str] = []
        for publisher, entries in cards:
            known = dict(db.execute("select key, sequence from models where publisher = ?", (publisher,)).fetchall())
            fresh += [entry for entry in entries if known.get(entry.key) != entry.sequence]
            gone += known.keys() - {entry.key for entry in entries}
        if fresh or gone:
            self._update(fresh, gone)

    def _count_holders(self, holders: Sequence[tuple[str, int]]) -> None:
        db = self._opened()
        db.execute("begin")
        db.executemany("update models set popularity = ?2 where model = ?1 and popularity <> ?2", holders)
        db.execute("commit")

    def _find(self, query: ModelQuery) -> tuple[list[str], int]:
        """Where many match, the order's own index is walked until the page is full: looking up and sorting tens of thousands of rows for
        twenty of them is what takes the time. Where few do, they are looked up and sorted."""
        db, match = self._opened(), match_of(query.search)
        tests, values = _tests(query)
        total = self._total(match, tests, values)
        if query.offset >= total:
            return [], total
        if match and query.sort == "relevance":
            source, order = "searched join models on models.id = searched.rowid", "searched.rank"
            way = "desc" if query.order == "asc" else "asc"
            where, values = ["searched match ?", *tests], [match, *values]
        else:
            column = _ORDERS.get(query.sort, "name")
            way = "desc" if (query.order or ("asc" if column == "name" else "desc")) == "desc" else "asc"
            walked = total > _WALKED_FROM
            source = f"models indexed by by_{column}" if walked else "models"
            where, values = ([_among(walked), *tests], [match, *values]) if match else (tests, values)
            order = f"{'' if walked else '+'}models.{column} {way}, models.key"
        tested = f" where {' and '.join(where)}" if where else ""
        rows = db.execute(f"select key from {source}{tested} order by {order} {way} limit ? offset ?", [*values, query.limit, query.offset])
        return [key for (key,) in rows], total

    def _total(self, match: str | None, tests: list[str], values: list[object]) -> int:
        """How many match; kept until the cards change."""
        counted = (" and ".join([match or "", *tests]), tuple(values))
        total = self._counts.get(counted)
        if total is None:
            if match and not tests:
                found = self._opened().execute("select count(*) from searched where searched match ?", [match])
            else:
                where, given = ([_among(True), *tests], [match, *values]) if match else (tests, values)
                found = self._opened().execute(f"select count(*) from models{' where ' if where else ''}{' and '.join(where)}", given)
            total = int(found.fetchone()[0])
            if len(self._counts) >= _COUNTS_KEPT:
                self._counts.clear()
            self._counts[counted] = total
        return total


def match_of(search: str | None) -> str | None:
    """The search in FTS5's language: every word, as a prefix, nothing of it an operator."""
    words = _WORD.findall(search or "")[:MAX_WORDS]
    return " ".join(f'"{word}"*' for word in words) or None


def _tests(query: ModelQuery) -> tuple[list[str], list[object]]:
    """The filters beside the search, and their values."""
    tests = (
        ("category = ?", query.category),
        ("framework = ?", query.framework),
        ("parameters >= ?", query.min_parameters),
        ("parameters <= ?", query.max_parameters),
    )
    given = [(test, value) for test, value in tests if value is not None]
    return [test for test, _ in given], [value for _, value in given]


def _among(walked: bool) -> str:
    """That a row is among those found; `walked`: rows come by another way and are compared, not looked up one after the other."""
    return f"{'+' if walked else ''}models.id in (select rowid from searched where searched match ?)"
