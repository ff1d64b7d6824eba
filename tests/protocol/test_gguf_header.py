"""GGUF headers: what is right is read as the gguf package reads it, what lies is refused quickly, in little memory, with its rule."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.demo_model import packaged_weights
from protocol import limits
from protocol.dtypes import BLOCKS, DTYPE_BITS
from protocol.errors import BadInput
from protocol.gguf_header import TYPES, GgufHeader, gguf_summary, parse_gguf
from protocol.safetensors_header import parse_header
from tests.support.gguf_files import tiny_gguf


def parsed(data: bytes) -> GgufHeader:
    return parse_gguf(memoryview(data)[: limits.MAX_GGUF_HEADER], len(data))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(key: str, kind: int, body: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + body


def entry(name: str, sides: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack("<I", len(sides)) + struct.pack(f"<{len(sides)}Q", *sides) + struct.pack("<IQ", kind, offset)


def made(values: list[bytes], entries: list[bytes], more: int = 4096, counts: tuple[int, int] | None = None) -> bytes:
    tensors, count = counts or (len(entries), len(values))
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + b"".join(values) + b"".join(entries) + bytes(more)


ARCH = value("general.architecture", 8, text("llama"))
WEIGHT = entry("blk.0.a.weight", (32, 4), 8, 0)


def test_it_reads_what_the_package_reads() -> None:
    path = packaged_weights()
    data = path.read_bytes()
    began = time.perf_counter()
    header = parsed(data)
    print(f"MEASURED header of {header.start} bytes, {len(header.tensors)} tensors: {time.perf_counter() - began:.3f} s")
    wanted = gguf.GGUFReader(path)
    assert {(t.name, t.offset, t.length, t.dtype, t.shape) for t in header.tensors} == {
        (t.name, t.data_offset, t.n_bytes, t.tensor_type.name, tuple(int(side) for side in t.shape)[::-1]) for t in wanted.tensors
    }
    summary = gguf_summary(header)
    assert (summary.model_type, summary.layers, summary.hidden, summary.vocabulary, summary.dtype) == ("llama", 30, 576, 49152, "Q4_1")


def test_blocks_are_those_of_the_package() -> None:
    for number, name in TYPES.items():
        elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        assert BLOCKS.get(name, (1, DTYPE_BITS.get(name, 0) // 8)) == (elements, size), name


LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another magic": (lambda right: b"GGML" + right[4:], "doesn't begin with GGUF"),
    "version 1": (lambda right: right[:4] + struct.pack("<I", 1) + right[8:], "version 1"),
    "big-endian": (lambda right: right[:4] + struct.pack(">I", 3) + right[8:], "version 50331648"),
    "cut in the values": (lambda right: right[:300], "at most|ends within"),
    "cut in the tensors": (lambda right: right[:-100], "end beyond the file"),
    "2^60 tensors": (lambda _: made([ARCH], [], counts=(1 << 60, 1)), "1152921504606846976 tensors, at most"),
    "2^63 values": (lambda _: made([], [], counts=(0, 1 << 63)), "values, at most"),
    "a key of 2^62 bytes": (lambda _: made([struct.pack("<Q", 1 << 62)], []), "a key has 4611686018427387904 bytes, at most 512"),
    "a string of 2^63 bytes": (lambda _: made([value("a", 8, struct.pack("<Q", 1 << 63))], []), "ends within"),
    "2^61 numbers": (lambda _: made([value("a", 9, struct.pack("<IQ", 12, 1 << 61))], []), "announces 2305843009213693952 items"),
    "2^61 strings": (lambda _: made([value("a", 9, struct.pack("<IQ", 8, 1 << 61))], []), "announces"),
    "2^21 strings": (lambda _: made([value("a", 9, struct.pack("<IQ", 8, 1 << 21))], [], 1 << 24), "2097152 strings, at most 1048576"),
    "strings past the end": (lambda _: made([value("a", 9, struct.pack("<IQQ", 8, 1, 1 << 40))], []), "ends within"),
    "lists in lists": (lambda _: made([value("a", 9, struct.pack("<IQ", 9, 1) * 100)], []), "nested deeper than 4"),
    "a list of nothing known": (lambda _: made([value("a", 9, struct.pack("<IQ", 77, 1))], []), "unknown type 77"),
    "an unknown value": (lambda _: made([value("a", 99, b"")], []), "unknown type 99"),
    "a key twice": (lambda _: made([ARCH, ARCH], []), "repeated"),
    "not UTF-8": (lambda _: made([struct.pack("<Q", 1) + b"\xff"], []), "isn't UTF-8"),
    "alignment 0": (lambda _: made([ARCH, value("general.alignment", 4, struct.pack("<I", 0))], []), "a power of two"),
    "alignment 48": (lambda _: made([ARCH, value("general.alignment", 4, struct.pack("<I", 48))], []), "a power of two"),
    "quantisation 999": (lambda _: made([ARCH], [entry("a", (32,), 999, 0)]), "quantisation number 999 is unknown"),
    "rank 9": (lambda _: made([ARCH], [entry("a", (1,) * 9, 0, 0)]), "rank 9, at most 8"),
    "a huge side": (lambda _: made([ARCH], [entry("a", (1 << 60,), 0, 0)]), "absurd"),
    "a huge product": (lambda _: made([ARCH], [entry("a", (1 << 40, 1 << 40), 0, 0)]), "end beyond the file"),
    "half a block": (lambda _: made([ARCH], [entry("a", (33,), 8, 0)]), "isn't a multiple of 32"),
    "an offset askew": (lambda _: made([ARCH], [entry("a", (32,), 8, 8)]), "isn't a multiple of 32"),
    "an offset beyond": (lambda _: made([ARCH], [entry("a", (32,), 8, 1 << 62)]), "end beyond the file"),
    "one over another": (lambda _: made([ARCH], [WEIGHT, entry("b", (32,), 0, 32)]), "overlap"),
    "one name twice": (lambda _: made([ARCH], [WEIGHT, entry("blk.0.a.weight", (32,), 0, 160)]), "two tensors have one name"),
    "a way out": (lambda _: made([ARCH], [entry("../../etc/x", (32,), 0, 0)]), "refused"),
    "a long name": (lambda _: made([ARCH], [entry("x" * 513, (32,), 0, 0)]), "has 513 bytes"),
    "nothing": (lambda _: b"", "doesn't begin"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_quickly_and_in_little_memory(name: str, right: bytes) -> None:
    lie, match = LIES[name]
    data = lie(right)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(BadInput, match=match):
            parsed(data)
        took, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"MEASURED {name}: refused in {took * 1000:.1f} ms, {peak} bytes")
    assert took < 0.1 * 3
    assert peak < 64 * limits.MIB


def test_one_past_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [entry(f"t{number}", (32,), 0, 128 * number) for number in range(3)]
    assert len(parsed(made([ARCH], many)).tensors) == 3
    monkeypatch.setattr(limits, "MAX_TENSORS_PER_FILE", 2)
    with pytest.raises(BadInput, match="3 tensors, at most 2"):
        parsed(made([ARCH], many))
    monkeypatch.setattr(limits, "MAX_GGUF_STRINGS", 2)
    two, three = (value("a", 9, struct.pack("<IQ", 8, count) + text("s") * count) for count in (2, 3))
    assert len(parsed(made([ARCH, two], [WEIGHT])).tensors) == 1
    with pytest.raises(BadInput, match="3 strings, at most 2"):
        parsed(made([ARCH, three], [WEIGHT]))
    deep, deeper = (value("a", 9, struct.pack("<IQ", 9, 1) * (depth - 1) + struct.pack("<IQ", 4, 0)) for depth in (4, 5))
    assert limits.MAX_GGUF_DEPTH == 4
    assert len(parsed(made([ARCH, deep], [WEIGHT])).tensors) == 1
    with pytest.raises(BadInput, match="nested deeper than 4"):
        parsed(made([ARCH, deeper], [WEIGHT]))
    monkeypatch.setattr(limits, "MAX_GGUF_HEADER", 64)
    with pytest.raises(BadInput, match="beyond 64 bytes"):
        parsed(made([ARCH], [WEIGHT]))


def test_the_summary_needs_an_architecture_and_keeps_to_limits() -> None:
    with pytest.raises(BadInput, match="architecture is missing"):
        gguf_summary(parsed(made([], [WEIGHT])))
    layers = value("llama.block_count", 4, struct.pack("<I", 1 << 31))
    with pytest.raises(BadInput, match="layers is 2147483648"):
        gguf_summary(parsed(made([ARCH, layers], [WEIGHT])))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 6000), st.binary(min_size=1, max_size=8), st.data())
def test_any_change_is_read_or_refused(at: int, other: bytes, data: st.DataObject) -> None:
    changed = bytearray(_right())
    changed[at : at + len(other)] = other
    with contextlib.suppress(BadInput):
        header = parsed(bytes(changed[: data.draw(st.integers(0, len(changed)))]))
        assert all(tensor.offset + tensor.length <= len(changed) for tensor in header.tensors)


def _right() -> bytes:
    strings = b"".join(map(text, ["a", "bc", ""]))
    values = [ARCH, value("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + strings), value("x", 12, bytes(8))]
    return made(values, [WEIGHT, entry("blk.0.b", (32, 2), 0, 160)], more=6000)


def test_safetensors_have_no_blocks() -> None:
    with pytest.raises(BadInput, match="Q8_0 is no dtype of safetensors"):
        parse_header(b'{"a":{"dtype":"Q8_0","shape":[32],"data_offsets":[0,34]}}', 200)


def test_a_file_of_the_tests_is_right(right: bytes, tmp_path: Path) -> None:
    assert {t.dtype for t in parsed(right).tensors} == {"Q8_0", "F32"}
