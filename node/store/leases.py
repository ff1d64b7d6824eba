"""How long a shard is kept, and what a collection may take. Pure; both stores use it.

A shard's lease runs 90 days from its put or its last renewal: by a read, by its publisher, by the owner's pin of a model
that it belongs to. After it ended the shard stays for a grace period, so that a publisher who was away for a season, or a
clock that was wrong for a day, costs nothing. A blob that neither a shard nor a model needs gets the same grace: it may have
been put a moment before the shards that need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from node.store.interface import ShardInfo, ShardKey
from node.store.keeping import Models
from protocol.ids import ModelId

DAY = 86_400.0
LEASE = 90 * DAY
GRACE = 7 * DAY
RENEW_AFTER = DAY
"""A lease renewed less than this long ago isn't written again."""


@dataclass(frozen=True)
class Collected:
    """What a collection dropped: shards (with the models they were kept for), number of blobs, bytes freed."""

    shards: list[ShardInfo]
    blobs: int
    bytes: int


def homes(info: ShardInfo, models: Models) -> set[ModelId]:
    """Every model the shard is kept for."""
    return {info.model} | {model for model, blobs in models.items() if info.key.encoding in blobs}


def stale(renewed: Mapping[ShardKey, float], keys: Iterable[ShardKey], now: float) -> list[ShardKey]:
    """Those of `keys` held here whose renewal is worth a write."""
    return [key for key in keys if key in renewed and now - renewed[key] >= RENEW_AFTER]


def ended(infos: Iterable[ShardInfo], renewed: Mapping[ShardKey, float], models: Models, pins: set[ModelId], now: float) -> list[ShardInfo]:
    """The shards whose lease and grace are over and that no pin keeps. `renewed` and `now` are Unix seconds."""
    pinned: set[bytes] = {blob for model in pins for blob in models.get(model, ())}
    return [
        info
        for info in infos
        if now - renewed.get(info.key, now) > LEASE + GRACE and info.model not in pins and info.key.encoding not in pinned
    ]
