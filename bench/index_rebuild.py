"""A store's index made again from its shard files: shards a second of `DiskStore.open()` after index.sqlite was deleted.

`python -m bench.index_rebuild [SHARDS] [ROUNDS] [BYTES]`: small shards (a leaf and a bit), since the work is by file, not by byte.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.bars import Bar
from node.store.disk import DiskStore
from node.store.interface import ShardInfo, ShardKey
from protocol.encoding import leaf_digests, shard_root
from protocol.ids import EncodingId, ModelId

OWNER = "12D3KooWBench"


def fill(store: DiskStore, shards: int, size: int) -> None:
    for number in range(shards):
        data = number.to_bytes(8, "big") + os.urandom(size - 8)
        info = ShardInfo(ShardKey(EncodingId(os.urandom(32)), number % 6), ModelId(bytes(32)), number, size, time.time(), OWNER)
        leaves = b"".join(leaf_digests(data))
        writer = store.put_shard(info, leaves, shard_root(size, leaves))
        writer.write(data)
        writer.commit()


def measure(root: Path, shards: int, rounds: int, size: int) -> dict[str, Any]:
    store = DiskStore(root, 2 * shards * (size + 4096), reserve=0)
    store.open()
    fill(store, shards, size)
    seconds = []
    for _ in range(rounds):
        store.close()
        for suffix in ("", "-wal", "-shm"):
            (root / f"index.sqlite{suffix}").unlink(missing_ok=True)
        began = time.perf_counter()
        store.open()
        seconds.append(time.perf_counter() - began)
        assert len(store.list_shards()) == shards
    store.close()
    took = statistics.median(seconds)
    return {
        "bench": "index_rebuild", "shards": shards, "shard_bytes": size, "rounds": rounds,
        "seconds": round(took, 3), "shards_per_second": round(shards / took),
    }  # fmt: skip


def run(shards: int = 1200, rounds: int = 5, size: int = 80_000) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="mf-index-", dir=os.environ.get("MF_BENCH_DIR")))
    try:
        return measure(root, shards, rounds, size)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def bars(found: dict[str, Any]) -> list[Bar]:
    return [Bar(f"index made again from {found['shards']} shard files", "≥ 200 shards/s", f"{found['shards_per_second']} shards/s")]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
