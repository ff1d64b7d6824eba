"""Any order of put, get, drop, forget, reopen, lost index and kill keeps exactly what was acknowledged."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.store.disk import DiskStore
from node.store.interface import ShardKey
from protocol import limits
from protocol.ids import digest
from tests.node.store.samples import MODEL, OTHER, get, put, shard

SEEDS = st.integers(0, 3)
LENGTHS = [0, 10, limits.LEAF, limits.LEAF + 3]
MODELS = st.sampled_from([MODEL, OTHER])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = DiskStore(self.root, 10 * limits.MIB, reserve=0)
        self.store.open()
        self.shards: dict[ShardKey, tuple[bytes, bytes]] = {}
        self.blobs: dict[bytes, set[bytes]] = {}

    @rule(seed=SEEDS, model=MODELS)
    def put(self, seed: int, model: bytes) -> None:
        sample = shard(seed, LENGTHS[seed], model=model)  # type: ignore[arg-type]
        put(self.store, sample)
        self.shards[sample[0].key] = (model, sample[3])

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
    def add_model(self, model: bytes, words: bytes) -> None:
        self.store.add_model(model, [self.store.put_blob(words)])  # type: ignore[arg-type]
        self.blobs[model] = {digest(words)}

    @rule(model=MODELS)
    def forget(self, model: bytes) -> None:
        self.store.forget(model)  # type: ignore[arg-type]
        self.shards = {key: kept for key, kept in self.shards.items() if kept[0] != model}
        self.blobs.pop(model, None)

    @rule(lose_index=st.booleans())
    def restart(self, lose_index: bool) -> None:
        self.store.close()
        for path in self.root.glob("index.sqlite*" if lose_index else "nothing"):
            path.unlink()
        self.store.open()
        assert list((self.root / "incoming").iterdir()) == []
        on_disk = sum(path.stat().st_size for folder in ("shards", "blobs") for path in (self.root / folder).iterdir())
        assert self.store.space().used == on_disk

    @invariant()
    def exactly_what_was_acknowledged(self) -> None:
        assert {info.key: info.model for info in self.store.list_shards()} == {key: kept[0] for key, kept in self.shards.items()}
        for key, (_, data) in self.shards.items():
            assert get(self.store, key) == data
        for blob in set().union(*self.blobs.values()) if self.blobs else ():
            assert self.store.get_blob(blob) is not None

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
