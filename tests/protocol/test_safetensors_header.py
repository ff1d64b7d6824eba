"""Headers of safetensors files: real ones are read, bombs and lies are refused before they cost anything."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import BadInput, MfError
from protocol.safetensors_header import HeaderTensor, header_length, parse_header


def header(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def parse(data: bytes, body: int = 1000) -> list[HeaderTensor]:
    return parse_header(data, 8 + len(data) + body)


def test_reads_what_the_library_writes() -> None:
    from safetensors.numpy import save

    data = save({"b": np.ones((2, 3), np.float32), "a": np.zeros(5, np.int8)}, {"format": "pt"})
    length = header_length(data[:8], len(data))
    tensors = {tensor.name: tensor for tensor in parse_header(data[8 : 8 + length], len(data))}
    assert tensors["b"].dtype == "F32"
    assert tensors["b"].shape == (2, 3)
    place = tensors["b"]
    assert np.frombuffer(data[place.offset : place.offset + place.length], np.float32).sum() == 6


def test_gaps_are_allowed_and_order_is_by_offset() -> None:
    data = header(late=entry(500, 600), early=entry(10, 20))
    assert [(t.name, t.offset - 8 - len(data)) for t in parse(data)] == [("early", 10), ("late", 500)]


LIES = {
    "overlap": header(a=entry(0, 10), b=entry(9, 20)),
    "empty tensor inside another": header(a=entry(0, 10), b=entry(5, 5, [0])),
    "outside the file": header(a=entry(0, 1001)),
    "backwards": header(a=entry(10, 0, [])),
    "shape product": header(a=entry(0, 10, [3, 3])),
    "product that overflows": header(a=entry(0, 0, [1 << 40, 1 << 40])),
    "negative side": header(a=entry(0, 4, [-2, -2])),
    "boolean side": b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
    "float offset": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1.0]}}',
    "NaN": b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}',
    "unknown dtype": header(a=entry(0, 4, dtype="PICKLE")),
    "rank one past": header(a=entry(0, 1, [1] * (limits.MAX_RANK + 1))),
    "path": header(**{"../../etc/x": entry(0, 1)}),
    "absolute": header(**{"/etc/x": entry(0, 1)}),
    "backslash": header(**{"a\\b": entry(0, 1)}),
    "NUL": header(**{"a\0b": entry(0, 1)}),
    "empty name": header(**{"": entry(0, 1)}),
    "name one past": header(**{"n" * (limits.MAX_NAME + 1): entry(0, 1)}),
    "repeated key": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
    "missing field": b'{"a":{"dtype":"U8","shape":[1]}}',
    "extra field": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":0}}',
    "a list": b"[]",
    "cut short": b'{"a":',
    "not UTF-8": b'{"\xff": 1}',
    "deep": b"[" * 100_000,
    "huge number": b'{"a":{"dtype":"U8","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,1]}}',
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_lies_are_refused(lie: str) -> None:
    with pytest.raises(BadInput):
        parse(LIES[lie])


def test_name_at_the_limit_is_read() -> None:
    assert len(parse(header(**{"n" * limits.MAX_NAME: entry(0, 1, [1] * limits.MAX_RANK)}))) == 1


def test_header_length_one_past() -> None:
    assert header_length(limits.MAX_HEADER.to_bytes(8, "little"), 1 << 40) == limits.MAX_HEADER
    with pytest.raises(BadInput, match="at most"):
        header_length((limits.MAX_HEADER + 1).to_bytes(8, "little"), 1 << 40)
    with pytest.raises(BadInput, match="the file has"):
        header_length((100).to_bytes(8, "little"), 107)
    with pytest.raises(BadInput):
        header_length(b"\0" * 3, 3)


def test_tensor_count_one_past() -> None:
    def many(count: int) -> bytes:
        return b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(count)) + b"}"

    assert len(parse(many(limits.MAX_TENSORS_PER_FILE))) == limits.MAX_TENSORS_PER_FILE
    with pytest.raises(BadInput, match="at most"):
        parse(many(limits.MAX_TENSORS_PER_FILE + 1))


@pytest.mark.parametrize("bomb", [b"[" + b"[]," * 3_000_000 + b"[]]", b"[" + b"0," * 4_000_000 + b"0]", b'{"a":' * 1_000_000])
def test_bombs_are_refused_before_they_are_parsed(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadInput):
            parse(bomb)
        assert tracemalloc.get_traced_memory()[1] < limits.MIB
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:0123abdtypeshapeU8_ofsets', max_size=200).map(str.encode))
def test_hostile_bytes_raise_nothing_else(data: bytes) -> None:
    with contextlib.suppress(MfError):
        parse(data)
