"""One segment, both ways: plain -> compressed -> sealed -> k pieces -> n pieces, and back. Pure: no files, no threads.

Layout as in `protocol/encoding.py`: the sealed bytes are cut in k pieces of ceil(coded / k), the last padded with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from erasure import cipher, compression
from erasure.code import Code
from protocol.encoding import SCHEME, Encoding, Segment, segment_plain
from protocol.errors import BadInput
from protocol.limits import coded_limit

Buffer = bytes | bytearray | memoryview
CodedSegment = tuple[Segment, list[memoryview]]


def segment_spans(k: int, length: int) -> Iterator[tuple[int, int]]:
    """(offset, plain bytes) of each segment of a group of `length` bytes."""
    full = segment_plain(k)
    for offset in range(0, length, full):
        yield offset, min(full, length - offset)


class Room:
    """Buffers for one segment on its way out, to be used again for another: pieces stay valid until then."""

    def __init__(self, code: Code) -> None:
        plain = segment_plain(code.k)
        piece = -(-coded_limit(plain) // code.k)
        self.plain = memoryview(bytearray(plain))
        self.sealed = memoryview(bytearray(piece * code.k))
        self.parity = [memoryview(bytearray(piece)) for _ in range(code.n - code.k)]


def encode_segment(
    plain: Buffer,
    index: int,
    compressed: str,
    secret: bytes,
    code: Code,
    room: Room | None = None,
    scheme: str = SCHEME,
    group: bytes = b"",
) -> CodedSegment:
    """The segment's line in the encoding and its n pieces, views of `room` (a fresh one if none is given). `group` is its id."""
    room = room or Room(code)
    stored = compression.compress(compressed, plain)
    coded = len(stored) + cipher.TAG
    if coded > coded_limit(len(plain)):
        raise BadInput(f"segment {index}: {compressed} makes {coded} bytes of {len(plain)}, more than allowed; use raw")
    piece = -(-coded // code.k)
    sealed = room.sealed[: piece * code.k]
    name = cipher.name_of(secret, scheme, group, index, stored)
    cipher.encrypt_into(secret, scheme, index, name, stored, sealed[:coded])
    sealed[coded:] = bytes(len(sealed) - coded)
    data = [sealed[j * piece : (j + 1) * piece] for j in range(code.k)]
    parity = [buffer[:piece] for buffer in room.parity]
    code.encode_into(data, parity)
    return Segment(len(plain), coded, name), [*data, *parity]


def decode_segment(encoding: Encoding, index: int, pieces: Mapping[int, Buffer], out: memoryview, secret: bytes) -> None:
    """Fills `out` (the segment's plain length) from any k pieces by shard number; `BadInput` says what doesn't hold."""
    length = encoding.piece_length(index)
    for number, piece in pieces.items():
        if len(piece) != length:
            raise BadInput(f"segment {index}: piece {number} has {len(piece)} bytes, not {length}")
    data = Code(encoding.k, len(encoding.roots)).decode(pieces)
    sealed = b"".join(data) if len(data) > 1 else data[0]
    open_segment(encoding, index, memoryview(sealed)[: encoding.segments[index].coded], out, secret)


def open_segment(encoding: Encoding, index: int, sealed: memoryview, out: memoryview, secret: bytes) -> None:
    """The second half of decoding, for a caller that has the data pieces in a row: `sealed` are the segment's coded bytes."""
    segment = encoding.segments[index]
    _check_lengths(encoding, index, len(sealed), len(out))
    raw = encoding.compression == "raw"
    stored = out if raw else memoryview(bytearray(segment.coded - cipher.TAG))
    cipher.decrypt_into(secret, encoding.scheme, index, segment.digest, sealed, stored)
    if cipher.name_of(secret, encoding.scheme, encoding.group, index, stored) != segment.digest:
        raise BadInput(f"segment {index}: its bytes don't have the digest that its encoding declares")
    if not raw:
        compression.decompress_into(encoding.compression, stored, out)


def open_scattered(encoding: Encoding, index: int, pieces: Iterable[memoryview], room: memoryview, secret: bytes) -> memoryview:
    """The segment's plain bytes, at the start of `room` (SLACK longer), from its data pieces in order, each in one or more views.

    The digest isn't checked: the signer may have sealed other bytes than it says. Only for a caller that compares the whole group
    with its manifest.
    """
    segment = encoding.segments[index]
    views, tag = _without_tag(pieces, segment.coded)
    _check_lengths(encoding, index, sum(map(len, views)) + len(tag), len(room) - cipher.SLACK)
    if encoding.compression == "raw":
        cipher.open_views(secret, encoding.scheme, index, segment.digest, views, tag, room)
        return room[: segment.plain]
    stored = memoryview(bytearray(segment.coded - cipher.TAG + cipher.SLACK))
    cipher.open_views(secret, encoding.scheme, index, segment.digest, views, tag, stored)
    compression.decompress_into(encoding.compression, stored[: -cipher.SLACK], room[: segment.plain])
    return room[: segment.plain]


def _check_lengths(encoding: Encoding, index: int, coded: int, plain: int) -> None:
    segment = encoding.segments[index]
    if coded != segment.coded or plain != segment.plain:
        raise BadInput(f"segment {index}: {coded} coded and {plain} plain bytes, not {segment.coded} and {segment.plain}")
    if encoding.compression == "raw" and segment.coded - cipher.TAG != segment.plain:
        raise BadInput(f"segment {index}: raw bytes of another length than declared")


def _without_tag(pieces: Iterable[memoryview], coded: int) -> tuple[list[memoryview], bytes]:
    """The first `coded` bytes: their views without the last TAG bytes, and those."""
    views: list[memoryview] = []
    tag = b""
    left = coded - cipher.TAG
    for piece in pieces:
        body = min(len(piece), max(0, left))
        views.append(piece[:body])
        tag += piece[body : body + cipher.TAG - len(tag)]
        left -= body
    return views, tag
