"""Leases of what was read, collection and scrubbing, over the store in memory and a store on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from node.store.disk import DiskStore
from node.store.interface import ShardKey
from node.store.leases import GRACE, LEASE
from node.store.scrub import ROUND, following, pause
from node.transfer.upkeep import IDLE, Upkeep
from protocol import limits
from protocol.ids import ModelId
from tests.node.store.samples import MODEL, put, shard

RATE = limits.MIB


class Reads:
    def __init__(self) -> None:
        self.keys: set[ShardKey] = set()

    def taken(self) -> set[ShardKey]:
        keys, self.keys = self.keys, set()
        return keys


class Kept:
    """A store with its upkeep, and what it told."""

    def __init__(self, store: DiskStore) -> None:
        self.store, self.reads, self.told = store, Reads(), list[ModelId]()
        self.now = shard(1, 0)[0].put_at
        self.upkeep = Upkeep(store, self.reads, self._in_files, self._gone, RATE, lambda: self.now, Random(1))

    async def _in_files(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def _gone(self, model: ModelId) -> None:
        self.told.append(model)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    store = DiskStore(tmp_path / "store", 50 * limits.MIB, reserve=0)
    store.open()
    yield Kept(store)
    store.close()


async def test_what_is_read_is_kept_and_what_nobody_reads_goes(kept: Kept) -> None:
    read, unread = put(kept.store, shard(1, 1000)), put(kept.store, shard(2, 1000))
    kept.now += LEASE
    kept.reads.keys.add(read)
    await kept.upkeep.look()
    assert kept.told == []
    kept.now += GRACE + 1
    await kept.upkeep.look()
    assert (kept.store.has(read), kept.store.has(unread)) == (True, False)
    assert kept.told == [MODEL]


async def test_scrubbing_goes_round_and_drops_what_rotted(kept: Kept) -> None:
    keys = [put(kept.store, shard(seed, 100_000)) for seed in range(1, 5)]
    bad = kept.store.root / "shards" / f"{keys[2].encoding.hex()}.0"
    bad.write_bytes(bad.read_bytes()[:-1] + b"\xff")
    waits = [await kept.upkeep.scrub_next() for _ in keys]
    assert kept.told == [MODEL]
    assert {info.key for info in kept.store.list_shards()} == set(keys) - {keys[2]}
    assert all(wait == pytest.approx(ROUND / 4, rel=0.5) for wait in waits)


async def test_an_empty_store_is_looked_at_again(kept: Kept) -> None:
    assert await kept.upkeep.scrub_next() == IDLE


def test_the_rate_is_never_passed() -> None:
    assert pause(100 * limits.MIB, 100 * limits.MIB, RATE) == ROUND
    assert pause(100 * limits.MIB, 10**15, RATE) == 100
    assert pause(0, 0, RATE) == 0


def test_the_order_is_round_and_bears_what_goes() -> None:
    infos = sorted((shard(seed, 0)[0] for seed in range(5)), key=lambda info: (info.key.encoding, info.key.shard))
    assert following([], None) is None
    assert following(infos, None) == infos[0]
    assert following(infos, infos[-1].key) == infos[0]
    assert following(infos[:2] + infos[3:], infos[2].key) == infos[3]
