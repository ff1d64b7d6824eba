"""Canonical msgpack for records and messages, and the length-prefixed frames they travel in.

Records are maps with string keys in sorted order and shortest integers, so that the same record has the
same bytes everywhere. Unpacking hostile bytes: the length is bounded before parsing, msgpack's own
limits bound arrays and maps (10 MB of nils would take 100 MB), extension types and non-string keys are
refused, and the result is converted to a typed struct that names the field that is wrong. Unknown keys
are ignored, except that a key beginning with "!" is critical: who doesn't know it must refuse.

A frame is an unsigned varint length and that many bytes (libp2p's convention).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgpack
import msgspec

from protocol import limits
from protocol.errors import BadInput

T = TypeVar("T")


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of every struct on the wire. Optional fields default to None and are left out."""


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def pack(value: Any) -> bytes:
    """Canonical bytes of a struct or of plain values."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview))
    return bytes(msgpack.packb(_sorted(plain), use_bin_type=True))


def unpack_plain(data: bytes | memoryview, what: str, limit: int = limits.MAX_FRAME) -> Any:
    """Plain values from hostile bytes; `BadInput` names `what` and the rule broken."""
    if len(data) > limit:
        raise BadInput(f"{what}: {len(data)} bytes, at most {limit} allowed")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limit,
            max_bin_len=limit,
            object_pairs_hook=_unique,
            max_array_len=min(limits.MAX_ARRAY, len(data)),
            max_map_len=min(limits.MAX_MAP, len(data)),
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise BadInput(f"{what}: not valid msgpack: {error or type(error).__name__}") from error
    _check(value, what, limits.MAX_DEPTH)
    return value


def _check(value: Any, what: str, depth: int) -> None:
    if depth == 0:
        raise BadInput(f"{what}: nested deeper than {limits.MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise BadInput(f"{what}: a key is {type(key).__name__}, only strings are allowed")
            _check(item, what, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, what, depth - 1)
    elif isinstance(value, msgpack.Timestamp | msgpack.ExtType):
        raise BadInput(f"{what}: extension types are not allowed")


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is repeated")
    return made


def unpack(data: bytes | memoryview, kind: type[T], what: str, limit: int = limits.MAX_FRAME) -> T:
    """A typed struct from hostile bytes; the error names the field. Unknown critical keys refuse."""
    if limits.MAX_FRAME < len(data) <= limit:
        return _unpack_large(data, kind, what)
    value = unpack_plain(data, what, limit)
    if isinstance(value, dict):
        _refuse_critical(value, what)
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise BadInput(f"{what}: {error}") from error


def _refuse_critical(keys: Iterable[str], what: str) -> None:
    for key in keys:
        if key.startswith("!"):
            raise BadInput(f"{what}: critical field {key[:64]!r} is unknown to this version")


def _unpack_large(data: bytes | memoryview, kind: type[T], what: str) -> T:
    """Blobs over a frame go straight into the struct: 64 MiB of empty arrays would take 4 GiB as plain values."""
    if _map_length(bytes(data[:5])) > limits.MAX_MAP:
        raise BadInput(f"{what}: over {limits.MAX_MAP} fields, or not a map")
    try:
        _refuse_critical(msgspec.msgpack.decode(data, type=dict[str, msgspec.Raw]), what)
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"{what}: {error or type(error).__name__}") from error


def _map_length(head: bytes) -> int:
    """Fields that a msgpack map announces; more than any limit when it isn't one."""
    if head[0] >> 4 == 8:
        return head[0] & 15
    width = {0xDE: 2, 0xDF: 4}.get(head[0])
    return int.from_bytes(head[1 : 1 + width], "big") if width else limits.MAX_MAP + 1


def encode_varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class FrameReader:
    """Frames out of a byte stream, without I/O: feed bytes, take whole frames. Refuses early on length."""

    def __init__(self, limit: int = limits.MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole frame, None when more bytes are needed; `BadInput` when it announces too much."""
        head = self._head()
        if head is None:
            return None
        start, length = head
        if len(self._buffer) < start + length:
            return None
        frame = bytes(memoryview(self._buffer)[start : start + length])
        del self._buffer[: start + length]
        return frame

    def _head(self) -> tuple[int, int] | None:
        length = 0
        for index, byte in enumerate(self._buffer[:5]):
            length |= (byte & 0x7F) << (7 * index)
            if length > self._limit:
                raise BadInput(f"frame: announces over {self._limit} bytes")
            if byte < 0x80:
                return index + 1, length
        if len(self._buffer) >= 5:
            raise BadInput("frame: length prefix over 5 bytes")
        return None


def frame(payload: bytes) -> bytes:
    return encode_varint(len(payload)) + payload
