"""What the node asks of its transfer process, as plain records on the channel between them.

The transfer process owns the shard store, the HTTPS server and client, hashing, coding and compression; the node owns
libp2p, grants and decisions. Both ends may call the other (see `node/channel.py`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from node.store.scrub import DEFAULT_RATE
from protocol.errors import BadInput
from protocol.framing import Record

T = TypeVar("T")


class TransferConfig(Record):
    """First message to the process. Keys travel here, never in arguments or the environment.

    `signing_key` is the raw 32-byte Ed25519 seed; `tls_key`, `tls_cert` are PEM; `listen` host:port (port 0: any); `scrub_rate` bytes/s,
    0: no scrubbing.
    """

    data_dir: str
    listen: str
    peer_id: str
    signing_key: bytes
    tls_key: bytes
    tls_cert: bytes
    quota: int
    scrub_rate: int = DEFAULT_RATE


class SourceSpan(msgspec.Struct, array_like=True, frozen=True):
    """`length` bytes at `offset` of the file in descriptor number `fd` (index into the message's descriptors)."""

    fd: int
    offset: int
    length: int


class EncodeGroup(Record):
    """Codes one group into n staged shards. `spans` give the plain bytes in order, with zero padding where a span's fd is -1.

    `compression` is "auto", "fast" or one of encoding.COMPRESSIONS; `element` the commonest element width (2, 4 or 1).
    """

    model: bytes
    group: int
    group_id: bytes
    length: int
    spans: list[SourceSpan]
    k: int
    n: int
    compression: str
    element: int
    n_max: int = 0
    """Shards committed to by a root, at least n (0: n): those beyond n aren't staged, anyone may make them later."""
    secret: bytes | None = None
    """Of a private model, 32 bytes: coded under scheme p1."""
    like: bytes | None = None
    """Envelope of an encoding to make again: where all comes out as it says, the shards are staged under it and not under a new one."""
    stage: tuple[int, ...] = ()
    """The shards to stage, of all that are committed to; empty: the first n."""


class Encoded(Record):
    """`envelope` is the signed encoding; its n shards are staged under its id until pushed, kept or dropped."""

    envelope: bytes
    encoding: bytes
    shard_bytes: int
    stored_bytes: int


class Source(Record):
    """A holder of shard `shard`; `speed` bytes/s by own measurement, None when unknown. The grant is asked for through `need_grant`."""

    peer: str
    shard: int
    speed: float | None = None


class Granted(Record):
    """A grant of `peer` for its shards of the encoding, at most `GRANT_KEPT` seconds old; `urls`, `tls` as in `GrantReply`."""

    peer: str
    urls: list[str]
    tls: bytes
    grant: bytes


GRANT_KEPT = 25.0
"""Seconds for which a node keeps a grant in store. The rest of the 60 s, in which it must be opened, is the fetch's."""


class TargetSpan(msgspec.Struct, array_like=True, frozen=True):
    """`length` bytes at `at` of the group go to `offset` of the file in descriptor number `fd` (index into the message's descriptors)."""

    fd: int
    at: int
    offset: int
    length: int


class FetchGroup(Record):
    """Assembles one group into the descriptor sent along, at `offset`, or into the `spans` of several. `sources` in order of preference.

    The bytes are checked against the encoding's leaves, not against the manifest: that is the asker's, before it uses them.

    `behind`: replies that are computed on this machine come first.

    `done` bytes from the group's beginning are in place already and aren't fetched. With `mark` the last descriptor is a file of marks and
    that the place of the group's (see `marks.py`). `secret` opens a private model's segments.

    The process calls `need_grant(peer, encoding, shards)` on the node before it first reads from a peer that isn't in `granted`,
    `leaf_fault(peer, encoding, shard, reason)` for each bad leaf, `progress(job, done, total)` at most 5 times a second.
    """

    job: str
    envelope: bytes
    offset: int
    sources: list[Source]
    granted: list[Granted] | None = None
    spans: list[TargetSpan] | None = None
    done: int = 0
    mark: int | None = None
    secret: bytes | None = None
    behind: bool = False


class RebuildShards(Record):
    """Makes the shards numbered in `make` from any k others of the encoding and stages them; `sources` as in `FetchGroup`."""

    job: str
    envelope: bytes
    sources: list[Source]
    make: list[int]


class BeginDecoding(Record):
    """To a decoding process: as `FetchGroup` says where the plain bytes go. The secret is the group's."""

    job: int
    envelope: bytes
    secret: bytes
    offset: int
    spans: list[TargetSpan] | None = None
    done: int = 0
    mark: int | None = None


class DecodeWindow(Record):
    """`got` (shard, slot) of k shards, `spare` a slot for each data shard that isn't among them."""

    job: int
    window: int
    got: list[tuple[int, int]]
    spare: list[int]


class DecodingRef(Record):
    job: int


class Fetched(Record):
    """`bytes` moved (`moved` per peer; evidence of speed in `speeds`, bytes/s), `asked` the peers read from."""

    bytes: int
    seconds: float
    asked: list[str]
    speeds: dict[str, float]
    moved: dict[str, int] = msgspec.field(default_factory=dict)


class PushShard(Record):
    """Sends a staged shard, or with `held` one that lies in the store, to a peer by PUT; `grant` is its envelope."""

    encoding: bytes
    shard: int
    peer: str
    urls: list[str]
    tls: bytes
    grant: bytes
    held: bool = False


class KeepShard(Record):
    """Moves a staged shard into the own store."""

    encoding: bytes
    shard: int
    model: bytes
    group: int


def converted(params: Any, kind: type[T]) -> T:
    """A call's parameters as they came over the channel; `BadInput` names the field."""
    try:
        return msgspec.convert(params if params is not None else {}, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise BadInput(f"a call to the transfer process: {error}") from error
