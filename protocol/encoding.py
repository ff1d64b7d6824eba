"""How a group was coded: the signed record that says what shard j is, and the arithmetic of its bytes.

    plain group -> segments -> compress -> seal (AES-256-GCM) -> k pieces -> n pieces -> shard j = piece j of every segment

A segment is `k * 256 KiB - 64` plain bytes (the last one less); its coded length counts compression and
seal; its k data pieces are its coded bytes cut in k, `ceil(coded / k)` each, the last padded with zeros. Shards are
hashed in leaves of 64 KiB. root_j = BLAKE3("mf/leaves/1" || shard length as 8 bytes big-endian || leaf digests).

`encoding id` = BLAKE3 of the signed envelope's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record
from protocol.ids import EncodingId, PeerId, digest
from protocol.signing import open_sealed, seal

DOMAIN = "mf/encoding/1"
SCHEME = "s1"
PRIVATE_SCHEME = "p1"
"""As s1 under a private model's secret: segments have keyed hashes of what is sealed, so that nothing known can be looked for."""
SCHEMES = (SCHEME, PRIVATE_SCHEME)
COMPRESSIONS = ("raw", "zstd", "planes2-zstd", "planes4-zstd", "lz4", "planes2-lz4", "planes4-lz4")
"""As stored per group: raw; zstd or LZ4, each plain or after byte planes of 2- or 4-byte elements."""


class Segment(msgspec.Struct, array_like=True, frozen=True):
    """plain and coded length in bytes; digest = BLAKE3 of the bytes given to the cipher, keyed where the scheme is private."""

    plain: int
    coded: int
    digest: bytes


class Encoding(Record):
    """`group` is the GroupId, `length` the group's plain bytes, `roots` one per shard committed (n_max of them)."""

    group: bytes
    scheme: str
    compression: str
    k: int
    n: int
    length: int
    segments: list[Segment]
    roots: list[bytes]

    def piece_length(self, segment: int) -> int:
        return -(-self.segments[segment].coded // self.k)

    def piece_lengths(self) -> list[int]:
        return [-(-segment.coded // self.k) for segment in self.segments]

    def shard_length(self) -> int:
        return sum(self.piece_lengths())


def segment_plain(k: int) -> int:
    """Plain bytes of a full segment: with the seal's 16 bytes a piece stays within 256 KiB."""
    return min(k * limits.PIECE, limits.SEGMENT_MAX) - 64


def leaf_count(shard_length: int) -> int:
    return -(-shard_length // limits.LEAF)


def leaf_digests(shard: bytes | memoryview) -> list[bytes]:
    view = memoryview(shard)
    return [digest(view[at : at + limits.LEAF]) for at in range(0, len(view), limits.LEAF)]


def shard_root(shard_length: int, leaves: Sequence[bytes] | bytes) -> bytes:
    """Root of a shard from its leaf list (32-byte digests, as a list or concatenated)."""
    joined = leaves if isinstance(leaves, bytes) else b"".join(leaves)
    hasher = blake3(b"mf/leaves/1")
    hasher.update(shard_length.to_bytes(8, "big"))
    hasher.update(joined)
    return hasher.digest()


def seal_encoding(key: Ed25519PrivateKey, encoding: Encoding) -> bytes:
    check_encoding(encoding)
    return seal(key, DOMAIN, encoding)


def encoding_id(envelope: bytes) -> EncodingId:
    return EncodingId(digest(envelope))


def parse_encoding(envelope: bytes) -> tuple[PeerId, Encoding]:
    """Signer and checked record from hostile bytes."""
    signer, encoding = open_sealed(envelope, DOMAIN, Encoding, limits.MAX_BLOB)
    check_encoding(encoding)
    return signer, encoding


def check_encoding(encoding: Encoding) -> None:
    """Every number against §9's limits and against each other; `BadInput` names the field and the rule."""

    def refuse(field: str, rule: str) -> None:
        raise BadInput(f"encoding: {field} {rule}")

    if encoding.scheme not in SCHEMES:
        refuse("scheme", f"is {encoding.scheme[:16]!r}, this version knows {', '.join(SCHEMES)}")
    if encoding.compression not in COMPRESSIONS:
        refuse("compression", f"is {encoding.compression[:16]!r}, this version knows {', '.join(COMPRESSIONS)}")
    if not 1 <= encoding.k <= encoding.n <= len(encoding.roots) <= limits.MAX_SHARDS:
        refuse("k, n, roots", f"{encoding.k}, {encoding.n}, {len(encoding.roots)}: 1 <= k <= n <= roots <= 256")
    if len(encoding.group) != 32 or any(len(root) != 32 for root in encoding.roots):
        refuse("group, roots", "must be 32 bytes each")
    if not 0 <= encoding.length <= limits.MAX_GROUP:
        refuse("length", f"is {encoding.length}, at most {limits.MAX_GROUP}")
    if len(encoding.segments) > limits.MAX_SEGMENTS:
        refuse("segments", f"are {len(encoding.segments)}, at most {limits.MAX_SEGMENTS}")
    _check_segments(encoding)


def _check_segments(encoding: Encoding) -> None:
    full = segment_plain(encoding.k)
    for index, segment in enumerate(encoding.segments):
        last = index == len(encoding.segments) - 1
        if not (0 < segment.plain <= full and (last or segment.plain == full)):
            raise BadInput(f"encoding: segments[{index}].plain is {segment.plain}, a full segment has {full}")
        if not 16 < segment.coded <= limits.coded_limit(segment.plain):
            raise BadInput(f"encoding: segments[{index}].coded is {segment.coded} for {segment.plain} plain bytes")
        if len(segment.digest) != 32:
            raise BadInput(f"encoding: segments[{index}].digest has {len(segment.digest)} bytes, not 32")
    if sum(segment.plain for segment in encoding.segments) != encoding.length:
        raise BadInput("encoding: the segments' plain lengths don't add up to the group's length")
