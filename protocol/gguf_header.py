"""The header of a GGUF file, read as the hostile bytes it is. Only what storing needs is kept: figures, and the tensor table.

A file (versions 2 and 3, little-endian) is "GGUF", version, counts of tensors and of values; the values (`general.architecture`,
hyperparameters, the tokenizer's lists); the tensor table: name, sides (fastest first), type, offset; then, at the next multiple of
`general.alignment`, the tensors' bytes. Every count is held to its limit and to the bytes that are left before a loop runs over it,
so a lying one costs nothing. Lists are stepped over, not kept: the tokenizer's may have a million strings.

Rejected: the `gguf` package's reader, which makes an object of every value before it checks any.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import NamedTuple

from protocol import limits
from protocol.config_summary import check_summary
from protocol.dtypes import tensor_bytes
from protocol.errors import BadInput
from protocol.manifest import Summary
from protocol.safetensors_header import HeaderTensor, check_apart, check_name

MAGIC = b"GGUF"
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""The table's numbers, as the manifest names them."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _LIST = 8, 9
_LONG = struct.Struct("<Q")
_KEPT_STRING = 1024
Value = int | float | str


class GgufHeader(NamedTuple):
    """`values` has numbers, short strings, and of each list its length; `tensors` by offset, `start` where their bytes begin."""

    values: dict[str, Value]
    tensors: list[HeaderTensor]
    start: int


class _Cursor:
    def __init__(self, data: memoryview, file_length: int) -> None:
        self._data, self.at, self._file = data, 0, file_length
        self.strings = 0

    def take(self, form: str, what: str) -> int:
        size = struct.calcsize(form)
        self.need(size, what)
        value: int = struct.unpack_from(form, self._data, self.at)[0]
        self.at += size
        return value

    def need(self, size: int, what: str) -> None:
        if self.at + size > len(self._data):
            short = "the file ends" if len(self._data) == self._file else f"the header goes on beyond {limits.MAX_GGUF_HEADER} bytes"
            raise BadInput(f"gguf: {short} within {what}")

    def string(self, what: str, most: int) -> str:
        length = self.take("<Q", what)
        if length > most:
            raise BadInput(f"gguf: {what} has {length} bytes, at most {most} allowed")
        self.need(length, what)
        text = bytes(self._data[self.at : self.at + length])
        self.at += length
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise BadInput(f"gguf: {what} isn't UTF-8") from None

    def skip_string(self, what: str) -> None:
        length = self.take("<Q", what)
        self.need(length, what)
        self.at += length

    def skip_strings(self, count: int, what: str) -> None:
        self.strings += count
        if self.strings > limits.MAX_GGUF_STRINGS:
            raise BadInput(f"gguf: {what} has {count} strings, at most {limits.MAX_GGUF_STRINGS} allowed in all")
        at, end, unpack = self.at, len(self._data) - 8, _LONG.unpack_from
        for _ in range(count):
            if at > end:
                break
            at += 8 + unpack(self._data, at)[0]
        self.at = min(at, end + 9)
        self.need(0, what)


def parse_gguf(data: memoryview, file_length: int) -> GgufHeader:
    """The header at the start of `data` (the file's first bytes, all of them or MAX_GGUF_HEADER); `BadInput` names the rule broken."""
    cursor = _Cursor(data, file_length)
    if bytes(data[:4]) != MAGIC:
        raise BadInput("gguf: the file doesn't begin with GGUF")
    cursor.at = 4
    version = cursor.take("<I", "its version")
    if version not in (2, 3):
        raise BadInput(f"gguf: version {version} (little-endian), 2 and 3 are known")
    tensors, values = cursor.take("<Q", "its count of tensors"), cursor.take("<Q", "its count of values")
    for count, what, most, least in (
        (tensors, "tensors", limits.MAX_TENSORS_PER_FILE, 24),
        (values, "values", limits.MAX_MAP, 13),
    ):
        if count > most or count * least > file_length:
            raise BadInput(f"gguf: {count} {what}, at most {min(most, file_length // least)} allowed in a file of {file_length} bytes")
    found = _values(cursor, values)
    alignment = found.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= limits.MIB or alignment & (alignment - 1):
        raise BadInput(f"gguf: general.alignment is {str(alignment)[:24]}, a power of two from 8 to {limits.MIB} is allowed")
    table = [_entry(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    placed = sorted((_placed(entry, start, alignment, file_length) for entry in table), key=lambda one: (one.offset, one.length, one.name))
    check_apart(placed)
    if len({tensor.name for tensor in placed}) != len(placed):
        raise BadInput("gguf: two tensors have one name")
    return GgufHeader(found, placed, start)


def _values(cursor: _Cursor, count: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string("a key", limits.MAX_NAME)
        if key in found:
            raise BadInput(f"gguf: the key {key[:64]!r} is repeated")
        found[key] = _value(cursor, cursor.take("<I", f"the type of {key[:64]!r}"), key)
    return found


def _value(cursor: _Cursor, kind: int, key: str) -> Value:
    what = f"the value of {key[:64]!r}"
    if kind in _SCALARS:
        return cursor.take(_SCALARS[kind], what)
    if kind == _LIST:
        return _skip_list(cursor, what, limits.MAX_GGUF_DEPTH)
    if kind != _STRING:
        raise BadInput(f"gguf: {what} has the unknown type {kind}")
    before = cursor.at
    length = cursor.take("<Q", what)
    cursor.at = before
    if length <= _KEPT_STRING:
        return cursor.string(what, _KEPT_STRING)
    cursor.skip_string(what)
    return ""


def _skip_list(cursor: _Cursor, what: str, depth: int) -> int:
    """Its length."""
    if not depth:
        raise BadInput(f"gguf: {what} has lists nested deeper than {limits.MAX_GGUF_DEPTH}")
    kind, count = cursor.take("<I", what), cursor.take("<Q", what)
    size = struct.calcsize(_SCALARS[kind]) if kind in _SCALARS else 8
    cursor.need(count * size, f"{what}, which announces {count} items,")
    if kind == _STRING:
        cursor.skip_strings(count, what)
    elif kind == _LIST:
        if count > limits.MAX_MAP:
            raise BadInput(f"gguf: {what} has {count} lists, at most {limits.MAX_MAP}")
        for _ in range(count):
            _skip_list(cursor, what, depth - 1)
    elif kind in _SCALARS:
        cursor.at += count * size
    else:
        raise BadInput(f"gguf: {what} is a list of the unknown type {kind}")
    return count


class _Entry(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.string("a tensor's name", limits.MAX_NAME)
    check_name(name)
    rank = cursor.take("<I", f"the rank of {name[:64]!r}")
    if rank > limits.MAX_RANK:
        raise BadInput(f"tensor {name[:64]!r}: rank {rank}, at most {limits.MAX_RANK}")
    sides = tuple(cursor.take("<Q", f"the shape of {name[:64]!r}") for _ in range(rank))
    if any(not 0 < side < 1 << 48 for side in sides):
        raise BadInput(f"tensor {name[:64]!r}: a side of its shape is 0 or absurd")
    kind = cursor.take("<I", f"the type of {name[:64]!r}")
    if kind not in TYPES:
        raise BadInput(f"tensor {name[:64]!r}: quantisation number {kind} is unknown", hint="a newer version may know it")
    return _Entry(name, TYPES[kind], sides[::-1], cursor.take("<Q", f"the offset of {name[:64]!r}"))


def _placed(entry: _Entry, start: int, alignment: int, file_length: int) -> HeaderTensor:
    length = tensor_bytes(entry.name, entry.dtype, entry.shape)
    if entry.offset % alignment:
        raise BadInput(f"tensor {entry.name[:64]!r}: its offset {entry.offset} isn't a multiple of {alignment}")
    if start + entry.offset + length > file_length:
        raise BadInput(f"tensor {entry.name[:64]!r}: its {length} bytes at {start + entry.offset} end beyond the file's {file_length}")
    return HeaderTensor(entry.name, entry.dtype, entry.shape, start + entry.offset, length)


def gguf_summary(header: GgufHeader) -> Summary:
    """What planning needs, from the values; `BadInput` for figures beyond their limits."""
    values = header.values
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or not kind:
        raise BadInput("gguf: general.architecture is missing")

    def figure(name: str) -> int | None:
        value = values.get(f"{kind}.{name}")
        return value if isinstance(value, int) else None

    vocabulary = figure("vocab_size") or values.get("tokenizer.ggml.tokens")
    weights = Counter[str]()
    for tensor in header.tensors:
        weights[tensor.dtype] += tensor.length
    summary = Summary(
        model_type=kind,
        layers=figure("block_count"),
        hidden=figure("embedding_length"),
        heads=figure("attention.head_count"),
        kv_heads=figure("attention.head_count_kv"),
        vocabulary=vocabulary if isinstance(vocabulary, int) and vocabulary else None,
        context=figure("context_length"),
        dtype=weights.most_common(1)[0][0] if weights else None,
    )
    check_summary(summary)
    return summary
