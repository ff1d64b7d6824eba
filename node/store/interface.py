"""Where shards and blobs lie. Disk and memory implementations, one conformance suite; `remote` reaches the one in the transfer process.

Obligations: a shard is listed only when all of its leaves have been checked against its encoding's root and it is durable; acknowledged
means durable (write, fdatasync, rename, fsync of the folder, index, acknowledge); the index can be deleted and is rebuilt from the files;
blobs are stored under BLAKE3 of their bytes. These methods block (files, SQLite): call them from an executor, never from a loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from protocol.ids import EncodingId, ModelId

if TYPE_CHECKING:
    from node.store.leases import Collected


@dataclass(frozen=True)
class ShardKey:
    encoding: EncodingId
    shard: int


@dataclass(frozen=True)
class ShardInfo:
    """`model` is the first model it was stored for; `put_at` Unix seconds; `bytes` of the shard without its leaf list."""

    key: ShardKey
    model: ModelId
    group: int
    bytes: int
    put_at: float
    owner: str


@dataclass(frozen=True)
class Space:
    """Bytes: the owner's quota, what is used of it (reserved puts included), what the disk has free."""

    quota: int
    used: int
    free: int


class ShardReader(Protocol):
    @property
    def length(self) -> int: ...

    def leaves(self) -> bytes:
        """The shard's leaf digests, concatenated."""

    def read(self, offset: int, length: int) -> bytes:
        """Shard bytes as they lie on disk now (not verified: the reader over the wire does)."""

    def read_into(self, offset: int, view: memoryview) -> int:
        """The same into a buffer; bytes read, fewer at the shard's end."""

    def read_cached(self, offset: int, view: memoryview) -> int:
        """The same, but only what needs no waiting for the disk: may be called from a loop. Bytes read, 0 when it can't tell."""

    def mark(self) -> object | None:
        """Equal as long as nobody has written the shard's bytes; None: can't tell."""

    def will_read(self, offset: int, length: int) -> None:
        """A hint that these bytes are asked for soon; doesn't wait."""

    def close(self) -> None: ...


class ShardWriter(Protocol):
    """Reserves room when opened. Leaves are checked as they come: `BadInput` at the first that doesn't match."""

    def write(self, data: bytes | memoryview) -> None: ...

    def commit(self) -> None:
        """Durable and listed after this returns; `BadInput` when bytes are missing."""

    def abort(self) -> None:
        """Gives the room back and leaves nothing behind; safe to call twice and after commit."""


class ShardStore(Protocol):
    removals: int
    """Counts shards dropped or replaced: who keeps a reader open looks at it."""

    def put_blob(self, data: bytes) -> bytes:
        """Durable; returns its id."""

    def get_blob(self, blob: bytes) -> bytes | None: ...

    def put_shard(self, info: ShardInfo, leaves: bytes, root: bytes) -> ShardWriter:
        """`StorageFull` beyond the quota or the disk's reserve; `BadInput` when the leaves don't give the root."""

    def open_shard(self, key: ShardKey) -> ShardReader | None: ...

    def has(self, key: ShardKey) -> bool: ...

    def list_shards(self, model: ModelId | None = None) -> list[ShardInfo]: ...

    def drop_shard(self, key: ShardKey, reason: str) -> None:
        """Not listed any more, file gone. For forget, collection and shards that failed a check."""

    def add_model(self, model: ModelId, blobs: Sequence[bytes]) -> None:
        """Remembers that these blobs (manifest first, then encodings) belong to a model kept here."""

    def share(self, model: ModelId, encodings: Sequence[EncodingId]) -> None:
        """These encodings, whose shards lie here for other models, belong to `model` too: they stay until the last of them goes."""

    def models(self) -> dict[ModelId, list[bytes]]: ...

    def prune(self, blobs: Sequence[bytes]) -> None:
        """Removes those of these blobs that no shard and no model kept here needs."""

    def renew(self, keys: Iterable[ShardKey], now: float) -> None:
        """Their leases run from `now` (Unix seconds) again; those renewed within the day, or not held, are left alone."""

    def renewed(self) -> dict[ShardKey, float]:
        """When each lease began, or was renewed last: at first `put_at`."""

    def pin(self, model: ModelId) -> None:
        """Nothing of this model is collected until `unpin`; durable. The model needn't be here yet."""

    def unpin(self, model: ModelId) -> None: ...

    def pins(self) -> set[ModelId]: ...

    def collect(self, now: float) -> Collected:
        """Drops shards whose lease and grace are over, and blobs that nothing has needed for as long as the grace."""

    def forget(self, model: ModelId) -> int:
        """Drops every shard, blob, pin and full holding kept for this model alone; returns bytes freed."""

    def space(self) -> Space: ...
