"""Small shards with right leaf lists."""

from __future__ import annotations

from random import Random

from node.store.interface import ShardInfo, ShardKey, ShardStore
from protocol.encoding import leaf_digests, shard_root
from protocol.ids import EncodingId, ModelId, digest

MODEL = ModelId(digest(b"a model"))
OTHER = ModelId(digest(b"another model"))


def shard(seed: int, length: int, number: int = 0, model: ModelId = MODEL) -> tuple[ShardInfo, bytes, bytes, bytes]:
    """(info, leaf list, root, bytes); encodings differ by seed."""
    data = Random(seed).randbytes(length)
    leaves = b"".join(leaf_digests(data))
    key = ShardKey(EncodingId(digest(b"encoding %d" % seed)), number)
    return ShardInfo(key, model, 3, length, 1_700_000_000.5, "owner"), leaves, shard_root(length, leaves), data


def put(store: ShardStore, sample: tuple[ShardInfo, bytes, bytes, bytes], step: int = 100_000) -> ShardKey:
    info, leaves, root, data = sample
    writer = store.put_shard(info, leaves, root)
    for at in range(0, len(data), step):
        writer.write(memoryview(data)[at : at + step])
    writer.commit()
    return info.key


def get(store: ShardStore, key: ShardKey) -> bytes | None:
    reader = store.open_shard(key)
    if reader is None:
        return None
    try:
        return reader.read(0, reader.length)
    finally:
        reader.close()
