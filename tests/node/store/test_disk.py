from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.store.disk import DiskStore
from node.store.leaf_check import first_bad_leaf
from node.store.room import Room, default_reserve
from protocol import limits
from protocol.errors import BadInput, Conflict, MfError, StorageFull
from tests.node.store.conformance import QUOTA, StoreConformance
from tests.node.store.samples import MODEL, get, put, shard


class TestDiskStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[DiskStore]:
        store = DiskStore(tmp_path / "data", QUOTA, reserve=0)
        store.open()
        yield store
        store.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path, QUOTA, reserve=0)
    store.open()
    yield store
    store.close()


def again(store: DiskStore) -> DiskStore:
    store.close()
    store.open()
    return store


def test_all_is_there_after_a_restart_and_without_the_index(opened: DiskStore) -> None:
    samples = [shard(seed, 70_000 * seed, number=seed) for seed in range(4)]
    for sample in samples:
        put(opened, sample)
    blob = opened.put_blob(b"manifest")
    opened.add_model(MODEL, [blob])
    before = (opened.list_shards(), opened.space().used, opened.models())
    for index in ("index.sqlite", None):
        opened.close()
        for path in opened.root.glob(f"{index}*"):
            path.unlink()
        opened.open()
        assert (opened.list_shards(), opened.space().used, opened.models()) == before
    assert get(opened, samples[2][0].key) == samples[2][3]


@pytest.mark.parametrize("junk", [b"not a database at all" * 50, b""])
def test_a_damaged_index_is_made_again(opened: DiskStore, junk: bytes) -> None:
    key = put(opened, shard(1, 100))
    opened.close()
    for path in opened.root.glob("index.sqlite-*"):
        path.unlink()
    (opened.root / "index.sqlite").write_bytes(junk)
    opened.open()
    assert opened.has(key)


def test_a_killed_put_leaves_nothing(opened: DiskStore) -> None:
    info, leaves, root, data = shard(1, 100_000)
    opened.put_shard(info, leaves, root).write(data[:70_000])
    again(opened)
    assert opened.space().used == 0
    assert list((opened.root / "incoming").iterdir()) == []


def test_files_that_are_not_whole_shards_are_removed(opened: DiskStore) -> None:
    short, renamed, right = (put(opened, shard(seed, 1000)) for seed in (1, 2, 3))
    folder = opened.root / "shards"
    os.truncate(folder / f"{short.encoding.hex()}.0", 500)
    (folder / f"{renamed.encoding.hex()}.0").rename(folder / f"{'ab' * 32}.7")
    (folder / "stray").write_bytes(b"MFSHARD1\xff\xff\xff\xff")
    again(opened)
    assert [info.key for info in opened.list_shards()] == [right]
    assert len(list(folder.iterdir())) == 1


def test_rot_is_found_by_a_scrub_even_when_the_header_is_gone_too(opened: DiskStore) -> None:
    key = put(opened, shard(1, 200_000))
    path = opened.root / "shards" / f"{key.encoding.hex()}.0"
    path.write_bytes(os.urandom(path.stat().st_size))
    reader = opened.open_shard(key)
    assert reader is not None
    assert first_bad_leaf(reader) == 0
    reader.close()


def test_a_rotten_blob_is_not_given_out(opened: DiskStore) -> None:
    blob = opened.put_blob(b"manifest")
    (opened.root / "blobs" / blob.hex()).write_bytes(b"manifesT")
    assert opened.get_blob(blob) is None
    assert opened.space().used == 0


def test_a_newer_format_is_refused_with_both_numbers(opened: DiskStore) -> None:
    opened.close()
    (opened.root / "format").write_text("2\n")
    with pytest.raises(Conflict, match=r"format 2.* 1"):
        opened.open()
    (opened.root / "format").write_text("what?")
    with pytest.raises(BadInput, match="instead of a number"):
        opened.open()


def test_one_process_at_a_time(opened: DiskStore) -> None:
    with pytest.raises(Conflict, match="in use"):
        DiskStore(opened.root, QUOTA).open()


def test_a_place_that_cannot_be_a_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match="file"):
            DiskStore(place, QUOTA).open()


@pytest.mark.parametrize(("number", "kind"), [(28, StorageFull), (5, MfError)])
def test_what_the_disk_refuses_names_the_path(opened: DiskStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[MfError]) -> None:
    info, leaves, root, data = shard(1, 100)
    writer = opened.put_shard(info, leaves, root)
    writer.write(data)

    def refuse(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(kind, match="incoming"):
        writer.commit()
    writer.abort()
    monkeypatch.undo()
    assert opened.space().used == 0
    assert not opened.has(info.key)
    assert again(opened).list_shards() == []


def test_the_order_of_a_durable_put(opened: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: object) -> object:
            seen.append(name)
            return real(*arguments)

        monkeypatch.setattr(owner, name, wrapped)

    for name in ("fdatasync", "rename", "fsync"):
        spy(os, name)
    spy(opened._index, "add")
    put(opened, shard(1, 100))
    assert seen == ["fdatasync", "rename", "fsync", "add"]


def test_the_disks_reserve_stays_free() -> None:
    room = Room(limits.GIB, "here", lambda: (limits.GIB, 100 * limits.MIB))
    assert default_reserve(100 * limits.GIB) == limits.GIB
    room.take(40 * limits.MIB)
    with pytest.raises(StorageFull, match="stay free"):
        room.take(10 * limits.MIB)
    room.give_back(40 * limits.MIB, pending=True)
    room.take(10 * limits.MIB)


def test_a_restart_is_quick(opened: DiskStore) -> None:
    """256 shards: within 3 s with the index and without it (measured: 0.1 s)."""
    for number in range(256):
        put(opened, shard(1, 10, number=number))
    for index in ("none", "index.sqlite"):
        opened.close()
        for path in opened.root.glob(f"{index}*"):
            path.unlink()
        start = time.monotonic()
        opened.open()
        assert time.monotonic() - start < 3
        assert len(opened.list_shards()) == 256
