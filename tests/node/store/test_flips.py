"""One bit turned in any byte that the store keeps, wherever: found, and nothing wrong is listed, read as right or announced."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.store.disk import DiskStore
from node.store.interface import ShardInfo
from node.store.scrub import verify
from protocol import limits
from tests.node.store.samples import MODEL, OTHER, get, put, shard

QUOTA = 10 * limits.MIB
SAMPLES = [shard(1, 2 * limits.LEAF + 5), shard(2, 10, model=OTHER), shard(3, limits.LEAF)]
BLOBS = [b"a manifest" * 50, b"an encoding" * 50]
ANYWHERE = st.floats(0, 1, exclude_max=True)
quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept") / "store"
    store = DiskStore(root, QUOTA, reserve=0)
    store.open()
    for sample in SAMPLES:
        put(store, sample)
    store.add_model(MODEL, [store.put_blob(words) for words in BLOBS])
    store.close()
    return root


@contextmanager
def flipped(kept: Path, name: str, place: float, bit: int, without_index: bool = False) -> Iterator[DiskStore]:
    """The store opened again after a bit of one of its files turned; the file looks as old as before."""
    root = kept.with_name("flipped")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(kept, root)
    path = root / name
    at = path.stat().st_mtime
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    os.utime(path, (at, at))
    if without_index:
        (root / "index.sqlite").unlink()
    store = DiskStore(root, QUOTA, reserve=0)
    store.open()
    try:
        yield store
    finally:
        store.close()


def right(store: DiskStore, info: ShardInfo) -> bool:
    """What is listed is told as it was put, and is either read right or found by a scrub."""
    sample = next(sample for sample in SAMPLES if sample[0].key == info.key)
    assert info == sample[0]
    same = get(store, info.key) == sample[3]
    found = verify(store, info.key)
    assert same or found
    assert (found is None) == (info in store.list_shards())
    return same


@quick
@given(sample=st.integers(0, 2), place=ANYWHERE, bit=st.integers(0, 7), without_index=st.booleans())
def test_a_flip_in_a_shard_file(kept: Path, sample: int, place: float, bit: int, without_index: bool) -> None:
    """Magic, header, leaf list or leaf. With the index lost as well, a file whose head doesn't hold is no shard any more."""
    key = SAMPLES[sample][0].key
    with flipped(kept, f"shards/{key.encoding.hex()}.{key.shard}", place, bit, without_index) as store:
        listed = store.list_shards()
        assert {info.key for info in listed} | {key} == {sample[0].key for sample in SAMPLES}
        assert all(right(store, info) for info in listed if info.key != key)
        for info in listed:
            right(store, info)


@quick
@given(blob=st.integers(0, 1), place=ANYWHERE, bit=st.integers(0, 7))
def test_a_flip_in_a_manifest_or_an_encoding(kept: Path, blob: int, place: float, bit: int) -> None:
    from protocol.ids import digest

    with flipped(kept, f"blobs/{digest(BLOBS[blob]).hex()}", place, bit) as store:
        assert store.get_blob(digest(BLOBS[blob])) is None
        assert store.get_blob(digest(BLOBS[1 - blob])) == BLOBS[1 - blob]
        assert store.put_blob(BLOBS[blob]) == digest(BLOBS[blob])
        assert store.get_blob(digest(BLOBS[blob])) == BLOBS[blob]


@quick
@given(place=ANYWHERE, bit=st.integers(0, 7))
def test_a_flip_in_the_index(kept: Path, place: float, bit: int) -> None:
    with flipped(kept, "index.sqlite", place, bit) as store:
        assert {info.key: info for info in store.list_shards()} == {sample[0].key: sample[0] for sample in SAMPLES}
        assert all(right(store, info) for info in store.list_shards())


@pytest.mark.parametrize(
    "lie", ["bytes = bytes - 1", "model = zeroblob(32)", "group_index = 9", "file_bytes = 0", "shard = 77", "owner = 'me'"]
)
def test_a_row_that_lies(kept: Path, tmp_path: Path, lie: str) -> None:
    root = tmp_path / "store"
    shutil.copytree(kept, root)
    with sqlite3.connect(root / "index.sqlite") as database:
        database.execute(f"update shards set {lie}")
    database.close()
    store = DiskStore(root, QUOTA, reserve=0)
    store.open()
    try:
        assert {info.key: info for info in store.list_shards()} == {sample[0].key: sample[0] for sample in SAMPLES}
        assert all(right(store, info) for info in store.list_shards())
    finally:
        store.close()
