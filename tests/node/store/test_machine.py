"""Any order of put, get, pin, renew, collect, scrub, drop, forget, kill and restart keeps exactly what was acknowledged: on both stores."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.store.disk import DiskStore
from node.store.interface import ShardKey, ShardStore
from node.store.leases import GRACE, LEASE, RENEW_AFTER
from node.store.memory import MemoryStore
from node.store.scrub import verify
from protocol import limits
from protocol.ids import ModelId, digest
from tests.node.store.samples import MODEL, OTHER, get, put, shard

SEEDS = st.integers(0, 3)
LENGTHS = [0, 10, limits.LEAF, limits.LEAF + 3]
MODELS = st.sampled_from([MODEL, OTHER])
QUOTA = 10 * limits.MIB


class StoreMachine(RuleBasedStateMachine):
    """What any store owes; the disk's own rules are below."""

    store: ShardStore

    def __init__(self) -> None:
        super().__init__()
        self.shards: dict[ShardKey, tuple[ModelId, bytes]] = {}
        self.blobs: dict[ModelId, set[bytes]] = {}
        self.leases: dict[ShardKey, float] = {}
        self.pins: set[ModelId] = set()
        self.now = shard(0, 0)[0].put_at

    @rule(seed=SEEDS, model=MODELS)
    def put(self, seed: int, model: ModelId) -> None:
        sample = shard(seed, LENGTHS[seed], model=model)
        put(self.store, sample)
        self.shards[sample[0].key] = (model, sample[3])
        self.leases[sample[0].key] = sample[0].put_at

    @rule(seed=SEEDS)
    def leave_a_put_half_done(self, seed: int) -> None:
        info, leaves, root, data = shard(seed + 10, LENGTHS[seed])
        self.store.put_shard(info, leaves, root).write(data[: len(data) // 2])

    @rule(seed=SEEDS)
    def drop(self, seed: int) -> None:
        key = shard(seed, LENGTHS[seed])[0].key
        self.store.drop_shard(key, "machine")
        self.shards.pop(key, None)

    @rule(model=MODELS, words=st.sampled_from([b"one", b"two"]))
    def add_model(self, model: ModelId, words: bytes) -> None:
        self.store.add_model(model, [self.store.put_blob(words)])
        self.blobs[model] = {digest(words)}

    @rule(model=MODELS)
    def forget(self, model: ModelId) -> None:
        self.store.forget(model)
        self.shards = {key: kept for key, kept in self.shards.items() if kept[0] != model}
        self.blobs.pop(model, None)
        self.pins.discard(model)

    @rule(model=MODELS, keep=st.booleans())
    def pin(self, model: ModelId, keep: bool) -> None:
        if keep:
            self.store.pin(model)
            self.pins.add(model)
        else:
            self.store.unpin(model)
            self.pins.discard(model)

    @rule(seed=SEEDS)
    def renew(self, seed: int) -> None:
        key = shard(seed, LENGTHS[seed])[0].key
        self.store.renew([key], self.now)
        if self.now - self.leases.get(key, self.now) >= RENEW_AFTER:
            self.leases[key] = self.now

    @rule(days=st.sampled_from([1, 60, 98]))
    def time_passes(self, days: int) -> None:
        self.now += days * 86_400

    @rule()
    def collect(self) -> None:
        over = {key for key, at in self.leases.items() if key in self.shards and self.now - at > LEASE + GRACE}
        over = {key for key in over if self.shards[key][0] not in self.pins}
        assert {info.key for info in self.store.collect(self.now).shards} == over
        for key in over:
            del self.shards[key]

    @rule(seed=SEEDS)
    def scrub(self, seed: int) -> None:
        key = shard(seed, LENGTHS[seed])[0].key
        assert verify(self.store, key) == (None if key in self.shards else "not held")

    @invariant()
    def exactly_what_was_acknowledged(self) -> None:
        assert {info.key: info.model for info in self.store.list_shards()} == {key: kept[0] for key, kept in self.shards.items()}
        assert self.store.renewed() == {key: at for key, at in self.leases.items() if key in self.shards}
        assert self.store.pins() == self.pins
        for key, (_, data) in self.shards.items():
            assert get(self.store, key) == data
        for blob in set().union(*self.blobs.values()) if self.blobs else ():
            assert self.store.get_blob(blob) is not None


class MemoryMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(QUOTA)


class DiskMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = self.disk = DiskStore(self.root, QUOTA, reserve=0)
        self.disk.open()

    @rule(lose_index=st.booleans())
    def restart(self, lose_index: bool) -> None:
        self.disk.close()
        for path in self.root.glob("index.sqlite*" if lose_index else "nothing"):
            path.unlink()
        self.disk.open()
        assert list((self.root / "incoming").iterdir()) == []
        on_disk = sum(path.stat().st_size for folder in ("shards", "blobs") for path in (self.root / folder).iterdir())
        assert self.disk.space().used == on_disk

    @rule()
    def kill(self) -> None:
        """Goes on with the directory as it lies there at this moment, the log of the index not yet folded in, puts half done."""
        killed, self.root = self.disk, Path(tempfile.mkdtemp())
        shutil.copytree(killed.root, self.root, dirs_exist_ok=True)
        killed.close()
        shutil.rmtree(killed.root)
        self.store = self.disk = DiskStore(self.root, QUOTA, reserve=0)
        self.disk.open()
        assert list((self.root / "incoming").iterdir()) == []

    @rule(seed=SEEDS)
    def rot_is_found_by_the_scrub(self, seed: int) -> None:
        key = shard(seed, LENGTHS[seed])[0].key
        if key not in self.shards or not LENGTHS[seed]:
            return
        path = self.root / "shards" / f"{key.encoding.hex()}.0"
        at = path.stat().st_mtime
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(bytes([self.shards[key][1][-1] ^ 1]))
        os.utime(path, (at, at))
        assert "leaf" in (verify(self.store, key) or "")
        del self.shards[key]

    def teardown(self) -> None:
        self.disk.close()
        shutil.rmtree(self.root)


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
