"""The header of a safetensors file, read as the hostile bytes it is.

A file is 8 bytes (little-endian header length), that many bytes of JSON, then data:
`{"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {…}}`, the offsets counted
from the first byte after the header.

The library accepts 500,000 empty tensors (600 MB of Python objects from a header of 30 MB) and names like `../../etc/x`, so
the header is measured before it is parsed: its length, then how many values it can hold, by counting the
characters that begin one. JSON that repeats a key is refused, because two readers would see two models. Bytes of the file
that belong to no tensor are allowed; whoever groups the file keeps them as file bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from protocol import limits
from protocol.dtypes import BLOCKS, DTYPE_BITS, tensor_bytes
from protocol.errors import BadInput

PREFIX = 8
"""Bytes before the JSON: its length, little-endian."""

_METADATA = "__metadata__"


class HeaderTensor(NamedTuple):
    """One tensor of one file; `offset` counts from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def header_length(prefix: bytes, file_length: int) -> int:
    """Length of the JSON announced by the file's first 8 bytes, checked against the limit and the file."""
    if len(prefix) < PREFIX or file_length < PREFIX + 2:
        raise BadInput(f"safetensors: the file has {file_length} bytes, too few for a header")
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > limits.MAX_HEADER:
        raise BadInput(f"safetensors: the header announces {length} bytes, at most {limits.MAX_HEADER} allowed")
    if PREFIX + length > file_length:
        raise BadInput(f"safetensors: the header announces {length} bytes, the file has {file_length}")
    return length


def parse_header(header: bytes, file_length: int) -> list[HeaderTensor]:
    """Checked tensors by offset, from the JSON bytes (without the 8 before them); `BadInput` names tensor and rule."""
    if len(header) > limits.MAX_HEADER or PREFIX + len(header) > file_length:
        raise BadInput(f"safetensors: a header of {len(header)} bytes, over {limits.MAX_HEADER} or longer than the file")
    _bound_values(header)
    entries = _parse_json(header)
    if len(entries) - (_METADATA in entries) > limits.MAX_TENSORS_PER_FILE:
        raise BadInput(f"safetensors: {len(entries)} tensors, at most {limits.MAX_TENSORS_PER_FILE} a file")
    start = PREFIX + len(header)
    tensors = [_tensor(name, entry, start, file_length) for name, entry in entries.items() if name != _METADATA]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.length, tensor.name))
    check_apart(tensors)
    return tensors


def check_name(name: str) -> None:
    """A tensor's name: printable, at most 512 characters, nothing that could be taken for a path elsewhere."""
    if not 0 < len(name) <= limits.MAX_NAME:
        raise BadInput(f"tensor name: {len(name)} characters, 1 to {limits.MAX_NAME} allowed")
    if not name.isprintable() or ".." in name or name.startswith("/") or "\\" in name:
        raise BadInput(f"tensor name {name[:64]!r}: control characters, '..', backslash and a leading '/' are refused")


def check_tensor(name: str, dtype: str, shape: Sequence[int], length: int) -> None:
    """Name, dtype, rank, and the shape's product against the byte length."""
    check_name(name)
    if dtype not in DTYPE_BITS and dtype not in BLOCKS:
        raise BadInput(f"tensor {name[:64]!r}: unknown dtype {dtype[:16]!r}")
    if len(shape) > limits.MAX_RANK:
        raise BadInput(f"tensor {name[:64]!r}: rank {len(shape)}, at most {limits.MAX_RANK}")
    if shape and not (min(shape) >= 0 and max(shape) < 1 << 48):
        raise BadInput(f"tensor {name[:64]!r}: a side of its shape is negative or absurd")
    if tensor_bytes(name, dtype, shape) != length:
        raise BadInput(f"tensor {name[:64]!r}: {length} bytes don't hold the shape {list(shape)} of {dtype}")


def check_apart(tensors: Sequence[HeaderTensor]) -> None:
    """No two of the tensors (sorted by offset) share a byte."""
    end, last = 0, ""
    for tensor in tensors:
        if tensor.offset < end:
            raise BadInput(f"safetensors: tensors {last[:64]!r} and {tensor.name[:64]!r} overlap")
        end, last = tensor.offset + tensor.length, tensor.name


def _bound_values(header: bytes) -> None:
    """Refuses headers that could hold far more values than the tensors allowed need, before they are parsed."""
    most = limits.MAX_TENSORS_PER_FILE
    for character, allowed in ((b"{", 2 * most), (b"[", 4 * most), (b",", 16 * most), (b":", 8 * most)):
        found = header.count(character)
        if found > allowed:
            raise BadInput(f"safetensors: {found} times {character.decode()!r} in the header, at most {allowed}")


def _parse_json(header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"safetensors: the header is not valid JSON: {str(error)[:120]}") from error
    if not isinstance(entries, dict):
        raise BadInput("safetensors: the header is not a JSON object")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is repeated")
    return entries


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _tensor(name: str, entry: Any, start: int, file_length: int) -> HeaderTensor:
    check_name(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadInput(f"tensor {name[:64]!r}: needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise BadInput(f"tensor {name[:64]!r}: dtype is a string, shape and data_offsets are lists")
    if len(offsets) != 2 or not all(map(_whole, shape)) or not all(map(_whole, offsets)):
        raise BadInput(f"tensor {name[:64]!r}: shape and data_offsets are whole numbers, two offsets")
    if dtype in BLOCKS:
        raise BadInput(f"tensor {name[:64]!r}: {dtype} is no dtype of safetensors")
    begin, end = offsets
    if begin > end or start + end > file_length:
        raise BadInput(f"tensor {name[:64]!r}: its bytes [{begin}, {end}) lie outside the file")
    check_tensor(name, dtype, shape, end - begin)
    return HeaderTensor(name, dtype, tuple(shape), start + begin, end - begin)
