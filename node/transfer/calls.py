"""The small messages between the node and its transfer process; the large ones are in `jobs`."""

from __future__ import annotations

from node.store.interface import ShardInfo, ShardKey, Space
from node.transfer.sources import Evidence
from protocol.framing import Record
from protocol.ids import EncodingId, ModelId


class Started(Record):
    port: int


class Blob(Record):
    """An id to look for, or its bytes; None: not held."""

    id: bytes | None = None
    data: bytes | None = None


class ModelBlobs(Record):
    model: bytes
    blobs: list[bytes]


class ModelRef(Record):
    model: bytes | None = None


class GiveWay(Record):
    """The worker computes, for about so long."""

    seconds: float


class PinModel(Record):
    """`keep` False takes the pin away."""

    model: bytes
    keep: bool


class ShardRef(Record):
    encoding: bytes
    shard: int
    reason: str | None = None
    owner: str | None = None

    def key(self) -> ShardKey:
        return ShardKey(EncodingId(self.encoding), self.shard)


class ShardRefs(Record):
    shards: list[ShardRef]


class AuditWalk(Record):
    """The walk asked by an audit: see `audit_reads`."""

    nonce: bytes
    shards: list[ShardRef]
    steps: int


class AuditShow(Record):
    """`leaves[i]` is the number of a leaf of `shards[i]`."""

    shards: list[ShardRef]
    leaves: list[int]


class EncodingRef(Record):
    encoding: bytes


class Staged(Record):
    encoding: bytes
    shards: list[int]


class ShardEntry(Record):
    """A shard in the store, or one that a peer was given leave to put."""

    encoding: bytes
    shard: int
    model: bytes
    group: int
    owner: str
    length: int = 0
    put_at: float = 0.0

    def info(self) -> ShardInfo:
        key = ShardKey(EncodingId(self.encoding), self.shard)
        return ShardInfo(key, ModelId(self.model), self.group, self.length, self.put_at, self.owner)


def entry_of(info: ShardInfo) -> ShardEntry:
    return ShardEntry(
        encoding=info.key.encoding, shard=info.key.shard, model=info.model, group=info.group,
        owner=info.owner, length=info.bytes, put_at=info.put_at,
    )  # fmt: skip


class SpaceEntry(Record):
    quota: int
    used: int
    free: int

    def space(self) -> Space:
        return Space(self.quota, self.used, self.free)


class Verified(Record):
    """`ok`: every leaf is right. Otherwise the shard was dropped, or wasn't there, and `reason` says so."""

    ok: bool
    reason: str | None = None


class Stat(Record):
    """Of the process: transfer requests served so far, shards held, seconds of CPU, peak resident bytes."""

    requests: int
    shards: int
    cpu_seconds: float
    peak_bytes: int


class NeedGrant(Record):
    peer: str
    encoding: bytes
    shards: list[int]


class LeafFault(Record):
    peer: str
    encoding: bytes
    shard: int
    reason: str
    evidence: Evidence | None = None


class Progress(Record):
    job: str
    done: int
    total: int
