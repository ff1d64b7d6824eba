"""Evidence on the disk: there after a restart, bounded, and never believed where it was touched."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from node.evidence_store import FILE, EvidenceStore, Page
from protocol.errors import Conflict, MfError
from protocol.stage_evidence import StageEvidence, seal_evidence
from tests.protocol.test_stage_evidence import evidences
from tests.runtime.test_stage_evidence import convicted

KEY = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)


@contextmanager
def opened(folder: Path, **bounds: int) -> Iterator[EvidenceStore]:
    store = EvidenceStore(folder, KEY, **bounds)
    try:
        asyncio.run(store.open())
        yield store
    finally:
        store.close()


def add(store: EvidenceStore, evidence: StageEvidence) -> int:
    return asyncio.run(store.add(lambda: evidence))


def read(store: EvidenceStore, most: int = 100, below: int | None = None, *, verify: bool = False) -> Page:
    return asyncio.run(store.read(most, below, verify=verify))


def touch(folder: Path, number: int, record: object) -> None:
    with sqlite3.connect(folder / FILE) as db:
        db.execute("update evidence set record = ? where number = ?", (record, number))
    db.close()


def test_there_after_a_restart_and_shown_again_offline(tmp_path: Path) -> None:
    made = convicted()
    with opened(tmp_path) as store:
        assert add(store, made) == 1
    with opened(tmp_path) as store:
        [kept] = read(store, verify=True).kept
        assert (kept.number, kept.evidence, kept.fault) == (1, made, None)
        assert add(store, made) == 2
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_touched_row_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = convicted()
    with opened(tmp_path) as store:
        for _ in range(5):
            add(store, made)
    changed = bytearray(seal_evidence(KEY, made))
    changed[200] ^= 1
    foreign = seal_evidence(Ed25519PrivateKey.generate(), made)
    for number, record in ((2, bytes(changed)), (3, foreign), (4, None), (5, "a word")):
        touch(tmp_path, number, record)
    with opened(tmp_path) as store:
        page = read(store)
        assert [kept.number for kept in page.kept] == [1]
        assert [one.number for one in page.damaged] == [5, 4, 3, 2]
        assert "not by this node" in page.damaged[2].fault
        assert "doesn't hold" in page.damaged[3].fault
    assert [f"evidence {number} isn't" in caplog.text for number in range(1, 6)] == [False, True, True, True, True]


def test_a_record_that_its_statements_dont_bear_out_is_told_when_asked(tmp_path: Path) -> None:
    made = convicted()
    other = msgspec.structs.replace(made, wrong=made.said[1].peer)
    with opened(tmp_path) as store:
        add(store, other)
        assert read(store).kept[0].fault is None
        assert "another one alone" in (read(store, verify=True).kept[0].fault or "")


def test_bounded_in_rows_the_oldest_first_out(tmp_path: Path) -> None:
    with opened(tmp_path, most_rows=4) as store:
        for number in range(1, 11):
            assert add(store, convicted(17)) == number
        assert [kept.number for kept in read(store).kept] == [10, 9, 8, 7]


def test_bounded_in_bytes(tmp_path: Path) -> None:
    size = len(seal_evidence(KEY, convicted()))
    with opened(tmp_path, most_bytes=3 * size + 2) as store:
        for _ in range(6):
            add(store, convicted())
        assert [kept.number for kept in read(store).kept] == [6, 5, 4]


def test_read_page_by_page(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for _ in range(5):
            add(store, convicted(17))
        touch(tmp_path, 4, b"touched")
        pages, below = [], None
        while not pages or below is not None:
            page = read(store, 2, below)
            pages.append(([kept.number for kept in page.kept], [one.number for one in page.damaged]))
            below = page.below
        assert pages == [([5], [4]), ([3, 2], []), ([1], [])]


def test_a_file_that_cant_be_read_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 300)
    with opened(tmp_path) as store:
        assert add(store, convicted()) == 1
    assert (tmp_path / f"{FILE}.damaged").read_bytes().startswith(b"no database")


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(Conflict, match="format 99"), opened(tmp_path):
        pass


def test_nothing_before_it_is_open(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, KEY)
    with pytest.raises(MfError, match="isn't open"):
        read(store)
    store.close()


@settings(deadline=None, max_examples=15)
@given(st.lists(evidences(), max_size=6), st.integers(1, 4), st.integers(1, 7))
def test_whatever_is_put_in_comes_back_newest_first(many: list[StageEvidence], rows: int, most: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        with opened(Path(place), most_rows=rows) as store:
            for evidence in many:
                add(store, evidence)
        with opened(Path(place), most_rows=rows) as store:
            page = read(store, most)
            assert [kept.evidence for kept in page.kept] == many[::-1][: min(rows, most)]
            assert page.damaged == []
            assert (page.below is None) == (min(rows, len(many)) <= most)
