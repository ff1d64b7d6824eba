"""What every shard store owes its callers; run on disk and memory."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from node.store.interface import ShardKey, ShardStore
from node.store.keeping import spared
from node.store.leaf_check import first_bad_leaf
from node.store.leases import DAY, GRACE, LEASE
from protocol import limits
from protocol.errors import BadInput, StorageFull, TooLarge
from protocol.ids import EncodingId, ModelId, digest
from tests.node.store.samples import MODEL, OTHER, get, put, shard

QUOTA = 4 * limits.MIB


class StoreConformance:
    """Subclasses give a `store` fixture with QUOTA bytes."""

    @pytest.mark.parametrize("length", [0, 1, limits.LEAF, limits.LEAF + 1, 5 * limits.LEAF - 7])
    def test_a_put_shard_is_listed_and_read_back(self, store: ShardStore, length: int) -> None:
        sample = shard(1, length)
        key = put(store, sample, step=50_001)
        assert get(store, key) == sample[3]
        assert store.has(key)
        assert store.list_shards() == [sample[0]]
        reader = store.open_shard(key)
        assert reader is not None
        room = bytearray(20)
        end = max(0, length - 15)
        assert reader.read_into(end, memoryview(room)) == length - end
        assert bytes(room[: length - end]) == sample[3][end:]
        assert (reader.length, reader.leaves(), reader.read(limits.LEAF, 10)) == (
            length,
            sample[1],
            sample[3][limits.LEAF : limits.LEAF + 10],
        )
        assert first_bad_leaf(reader) is None
        reader.close()

    def test_nothing_is_listed_before_commit(self, store: ShardStore) -> None:
        info, leaves, root, data = shard(1, 200_000)
        before = store.space().used
        writer = store.put_shard(info, leaves, root)
        writer.write(data)
        assert not store.has(info.key)
        assert store.open_shard(info.key) is None
        assert store.space().used >= before + len(data)
        writer.abort()
        writer.abort()
        assert store.space().used == before
        assert store.list_shards() == []

    def test_abort_after_commit_leaves_the_shard(self, store: ShardStore) -> None:
        info, leaves, root, data = shard(1, 10)
        writer = store.put_shard(info, leaves, root)
        writer.write(data)
        writer.commit()
        writer.abort()
        assert get(store, info.key) == data

    def test_the_first_wrong_leaf_is_named(self, store: ShardStore) -> None:
        info, leaves, root, data = shard(1, 3 * limits.LEAF)
        writer = store.put_shard(info, leaves, root)
        bad = bytearray(data)
        bad[limits.LEAF + 5] ^= 1
        with pytest.raises(BadInput, match="leaf 1"):
            writer.write(bytes(bad))
        with pytest.raises(BadInput):
            writer.commit()
        writer.abort()
        assert store.space().used == 0

    def test_missing_and_surplus_bytes_are_refused(self, store: ShardStore) -> None:
        info, leaves, root, data = shard(1, 100)
        writer = store.put_shard(info, leaves, root)
        writer.write(data[:99])
        with pytest.raises(BadInput, match="99 right bytes"):
            writer.commit()
        with pytest.raises(BadInput):
            writer.write(data[99:] + b"x")
        writer.abort()
        assert not store.has(info.key)

    def test_a_leaf_list_must_give_the_root(self, store: ShardStore) -> None:
        info, leaves, root, _ = shard(1, 100)
        for bad in [(info, leaves[:-1], root), (info, bytes(32), root), (info, leaves, bytes(32)), (replace(info, bytes=99), leaves, root)]:
            with pytest.raises(BadInput):
                store.put_shard(*bad)
        with pytest.raises(BadInput):
            store.put_shard(replace(info, key=ShardKey(info.key.encoding, limits.MAX_SHARDS)), leaves, root)

    def test_the_quota_counts_what_is_reserved(self, store: ShardStore) -> None:
        first, second = shard(1, 3 * limits.MIB), shard(2, limits.MIB)
        writer = store.put_shard(*first[:3])
        with pytest.raises(StorageFull, match="quota"):
            store.put_shard(*second[:3])
        writer.abort()
        put(store, second)

    def test_a_second_put_replaces(self, store: ShardStore) -> None:
        sample = shard(1, 100_000)
        put(store, sample)
        used = store.space().used
        put(store, sample)
        assert store.space().used == used
        assert len(store.list_shards()) == 1

    def test_dropped_is_gone(self, store: ShardStore) -> None:
        key = put(store, shard(1, 1000))
        store.drop_shard(key, "a test")
        store.drop_shard(key, "a test")
        assert not store.has(key)
        assert get(store, key) is None
        assert store.space().used == 0

    def test_blobs_are_pruned_when_nothing_needs_them(self, store: ShardStore) -> None:
        sample = shard(1, 1000)
        key, listed, loose = put(store, sample), store.put_blob(b"listed"), store.put_blob(b"loose")
        store.add_model(ModelId(listed), [listed])
        store.prune([listed, loose, key.encoding])
        assert store.get_blob(listed) == b"listed"
        assert store.get_blob(loose) is None
        assert store.has(key)

    def test_blobs_lie_under_their_hash(self, store: ShardStore) -> None:
        blob = store.put_blob(b"words")
        assert blob == digest(b"words")
        assert store.put_blob(b"words") == blob
        assert store.get_blob(blob) == b"words"
        assert store.get_blob(bytes(32)) is None
        assert store.space().used == 5
        with pytest.raises(TooLarge):
            store.put_blob(bytes(limits.MAX_BLOB + 1))
        with pytest.raises(StorageFull):
            store.put_blob(bytes(QUOTA))

    def test_forget_frees_what_only_that_model_uses(self, store: ShardStore) -> None:
        encoding = store.put_blob(b"shared encoding")
        alone = store.put_blob(b"manifest")
        info, leaves, root, data = shard(1, 1000)
        info = replace(info, key=ShardKey(EncodingId(encoding), 2))
        store.add_model(MODEL, [alone, encoding])
        store.add_model(OTHER, [encoding])
        shared, own = put(store, (info, leaves, root, data)), put(store, shard(9, 500))
        assert {entry.key for entry in store.list_shards(OTHER)} == {shared}
        assert {entry.key for entry in store.list_shards(MODEL)} == {shared, own}
        used = store.space().used
        assert store.forget(MODEL) == used - store.space().used > 500
        assert store.models() == {OTHER: [encoding]}
        assert [(entry.key, entry.model) for entry in store.list_shards()] == [(shared, OTHER)]
        assert store.get_blob(alone) is None
        assert store.get_blob(encoding) is not None
        store.forget(OTHER)
        assert store.space().used == 0
        assert store.list_shards() == []
        assert store.forget(MODEL) == 0

    def test_forget_takes_a_manifest_that_was_never_listed(self, store: ShardStore) -> None:
        model = ModelId(store.put_blob(b"a manifest"))
        put(store, shard(1, 100, model=model))
        assert store.forget(model) > 100
        assert store.space().used == 0

    def test_a_shard_whose_lease_ended_goes_after_its_grace(self, store: ShardStore) -> None:
        sample = shard(1, 1000)
        put(store, sample)
        put_at = sample[0].put_at
        assert store.renewed() == {sample[0].key: put_at}
        assert store.collect(put_at + LEASE + GRACE).shards == []
        used = store.space().used
        done = store.collect(put_at + LEASE + GRACE + 1)
        assert ([info.key for info in done.shards], done.bytes) == ([sample[0].key], used)
        assert not store.has(sample[0].key)
        assert store.renewed() == {}

    def test_a_renewed_lease_runs_again(self, store: ShardStore) -> None:
        key = put(store, shard(1, 1000))
        put_at = store.renewed()[key]
        store.renew([key, ShardKey(EncodingId(bytes(32)), 0)], put_at + 10)
        assert store.renewed() == {key: put_at}  # within the day: not worth a write
        store.renew([key], put_at + 50 * DAY)
        assert store.renewed() == {key: put_at + 50 * DAY}
        assert store.collect(put_at + LEASE + GRACE + DAY).shards == []
        assert len(store.collect(put_at + 50 * DAY + LEASE + GRACE + 1).shards) == 1

    def test_a_pin_keeps_every_shard_of_its_model(self, store: ShardStore) -> None:
        own, shared, other = shard(1, 1000), shard(2, 1000, model=OTHER), shard(3, 1000, model=OTHER)
        for sample in (own, shared, other):
            put(store, sample)
        store.add_model(MODEL, [shared[0].key.encoding])
        store.pin(MODEL)
        assert store.pins() == {MODEL}
        late = own[0].put_at + 10 * LEASE
        assert [info.key for info in store.collect(late).shards] == [other[0].key]
        store.unpin(MODEL)
        store.unpin(MODEL)
        assert {info.key for info in store.collect(late).shards} == {own[0].key, shared[0].key}

    def test_forget_takes_the_pin_too(self, store: ShardStore) -> None:
        store.pin(MODEL)
        store.forget(MODEL)
        assert store.pins() == set()

    def test_a_blob_that_nothing_needs_goes_after_its_grace(self, store: ShardStore) -> None:
        now = time.time()
        sample = shard(1, 1000)
        put(store, (replace(sample[0], put_at=now), *sample[1:]))
        listed, loose = store.put_blob(b"listed"), store.put_blob(b"loose")
        store.add_model(ModelId(listed), [listed])
        assert store.collect(now + 60).blobs == 0
        assert store.get_blob(loose) == b"loose"
        assert store.collect(now + 60 + GRACE + DAY).blobs == 1
        assert store.get_blob(loose) is None
        assert store.get_blob(listed) == b"listed"

    def test_a_shared_shard_is_listed_for_both_and_stays_until_the_last_goes(self, store: ShardStore) -> None:
        first, second = ModelId(store.put_blob(b"one manifest")), ModelId(store.put_blob(b"another manifest"))
        encoding = EncodingId(store.put_blob(b"an encoding"))
        info, leaves, root, data = shard(1, 1000, model=first)
        key = put(store, (replace(info, key=ShardKey(encoding, 2)), leaves, root, data))
        alone = put(store, shard(2, 500, model=first))
        store.share(second, [encoding])
        store.share(second, [encoding])
        assert store.models() == {first: [first, encoding], second: [second, encoding]}
        assert {entry.key for entry in store.list_shards(first)} == {key, alone}
        assert [(entry.key, entry.model) for entry in store.list_shards(second)] == [(key, second)]
        assert spared(store.list_shards(), store.models()) == 1000
        late = put(store, (replace(info, key=ShardKey(encoding, 3)), leaves, root, data))
        store.forget(first)
        assert {(entry.key, entry.model) for entry in store.list_shards()} == {(key, second), (late, second)}
        assert (get(store, key), store.get_blob(first), store.get_blob(second)) == (data, None, b"another manifest")
        store.share(second, [encoding])
        assert first not in store.models()
        store.forget(second)
        assert store.space().used == 0

    def test_a_shard_put_for_a_model_whose_encoding_others_list_is_listed_for_it(self, store: ShardStore) -> None:
        sample = shard(1, 100)
        store.add_model(OTHER, [sample[0].key.encoding])
        put(store, sample)
        for model in (MODEL, OTHER):
            assert [info.model for info in store.list_shards(model)] == [model]
        store.forget(OTHER)
        assert [info.model for info in store.list_shards()] == [MODEL]
