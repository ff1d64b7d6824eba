"""What an audit reads from a store: tags that follow the rule, missing shards left out, rotten ones dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.store.disk import DiskStore
from node.store.interface import ShardInfo, ShardKey, ShardStore
from node.store.memory import MemoryStore
from node.transfer.audit_reads import show, walk
from protocol import limits
from protocol.audits import TAG, Walk
from protocol.encoding import leaf_digests, shard_root
from protocol.errors import NotFound
from protocol.ids import EncodingId, ModelId, digest

MODEL = ModelId(digest(b"model"))
NONCE = bytes(range(32))
KEYS = [ShardKey(EncodingId(digest(b"encoding %d" % number)), number) for number in range(3)]
DATA = [bytes([number + 1]) * (limits.LEAF * (number + 2) + 17) for number in range(3)]
STEPS = 32


@pytest.fixture(params=["memory", "disk"])
def store(request: Any, tmp_path: Path) -> Iterator[ShardStore]:
    made: Any = MemoryStore(1 << 30) if request.param == "memory" else DiskStore(tmp_path / "store", 1 << 30)
    if request.param == "disk":
        made.open()
    for key, data in zip(KEYS, DATA, strict=True):
        listed = b"".join(leaf_digests(data))
        writer = made.put_shard(ShardInfo(key, MODEL, 0, len(data), 1.0, "owner"), listed, shard_root(len(data), listed))
        writer.write(data)
        writer.commit()
    yield made
    if request.param == "disk":
        made.close()


def leaf(target: int, number: int) -> bytes:
    return DATA[target][number * limits.LEAF : (number + 1) * limits.LEAF]


def test_the_tags_are_those_of_the_rule(store: ShardStore) -> None:
    done = walk(store, NONCE, KEYS, STEPS)
    assert done.tags == Walk(NONCE, [len(data) for data in DATA], STEPS).go(leaf)
    assert (done.missing, done.lengths, done.lost) == ([], [len(data) for data in DATA], [])


def test_what_is_not_held_is_left_out_of_the_walk(store: ShardStore) -> None:
    store.drop_shard(KEYS[1], "test")
    done = walk(store, NONCE, KEYS, STEPS)
    lengths = [len(DATA[0]), len(DATA[2])]
    assert done.tags == Walk(NONCE, lengths, STEPS).go(lambda target, number: leaf(2 * target, number))
    assert (done.missing, done.lengths, done.lost) == ([1], lengths, [])
    nothing = walk(store, NONCE, [KEYS[1]], STEPS)
    assert (nothing.tags, nothing.missing, nothing.lengths) == (b"", [0], [])


def test_a_shard_gone_bad_is_dropped_and_missing(store: ShardStore, tmp_path: Path) -> None:
    if isinstance(store, MemoryStore):
        info, listed, data = store._shards[KEYS[2]]
        store._shards[KEYS[2]] = (info, listed, bytes(len(data)))
    else:
        (path,) = (tmp_path / "store").rglob(f"{KEYS[2].encoding.hex()}.2")
        path.write_bytes(path.read_bytes()[: -len(DATA[2])] + bytes(len(DATA[2])))
    with pytest.raises(NotFound, match="gone bad"):
        show(store, [(KEYS[0], 0), (KEYS[2], 1)])
    done = walk(store, NONCE, KEYS, STEPS)
    assert done.missing == [2]
    assert done.lost == [MODEL]
    assert len(done.tags) == TAG * STEPS
    assert not store.has(KEYS[2])
    assert store.has(KEYS[0])


def test_leaves_are_shown_with_each_list_once(store: ShardStore) -> None:
    shown = show(store, [(KEYS[1], 3), (KEYS[0], 0), (KEYS[1], 0)])
    assert shown.lists == [b"".join(leaf_digests(DATA[1])), b"".join(leaf_digests(DATA[0]))]
    assert shown.leaves == [leaf(1, 3), leaf(0, 0), leaf(1, 0)]
    store.drop_shard(KEYS[0], "test")
    with pytest.raises(NotFound):
        show(store, [(KEYS[1], 3), (KEYS[0], 0)])


def test_an_audit_renews_no_lease(store: ShardStore) -> None:
    before = store.renewed()
    walk(store, NONCE, KEYS, STEPS)
    show(store, [(KEYS[0], 0)])
    assert store.renewed() == before
