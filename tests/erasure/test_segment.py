"""A segment both ways under every compression; its cipher never meets one key and nonce twice; bombs are refused."""

from __future__ import annotations

import contextlib
import random

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure import cipher, compression
from erasure.cipher import PUBLIC_SECRET, SLACK
from erasure.code import Code
from erasure.segment import CodedSegment, Room, decode_segment, encode_segment, open_scattered, segment_spans
from protocol.encoding import COMPRESSIONS, SCHEME, Encoding, Segment, segment_plain
from protocol.errors import BadInput
from protocol.ids import digest


def encoding_of(segment: Segment, compressed: str, code: Code, index: int = 0) -> Encoding:
    roots = [bytes(32)] * code.n
    segments = [segment] * (index + 1)
    return Encoding(
        group=bytes(32), scheme=SCHEME, compression=compressed, k=code.k, n=code.n, length=segment.plain, segments=segments, roots=roots
    )


def weights(count: int, seed: int = 1) -> bytes:
    """bf16 numbers: the upper halves of normal fp32."""
    values = np.random.default_rng(seed).normal(0, 0.02, count).astype("<f4").view("<u4") >> 16
    return values.astype("<u2").tobytes()


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.binary(min_size=1, max_size=3000), st.integers(1, 40000).map(weights)),
    st.sampled_from(COMPRESSIONS),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_any_k_pieces_give_the_plain_bytes(plain: bytes, name: str, k: int, more: int, index: int, rng: random.Random) -> None:
    code = Code(k, k + more)
    segment, pieces = encode_segment(plain, index, name, PUBLIC_SECRET, code)
    encoding = encoding_of(segment, name, code, index)
    assert {len(piece) for piece in pieces} == {encoding.piece_length(index)}
    kept = rng.sample(range(code.n), k)
    out = bytearray(len(plain))
    decode_segment(encoding, index, {j: pieces[j] for j in kept}, memoryview(out), PUBLIC_SECRET)
    assert bytes(out) == plain


def test_equal_bytes_give_equal_pieces() -> None:
    code = Code(2, 4)
    first = encode_segment(b"x" * 999, 0, "raw", PUBLIC_SECRET, code)
    second = encode_segment(bytearray(b"x" * 999), 0, "raw", PUBLIC_SECRET, code)
    assert first[0] == second[0]
    assert [bytes(p) for p in first[1]] == [bytes(p) for p in second[1]]


def test_no_key_and_nonce_meet_two_inputs() -> None:
    seen: dict[tuple[bytes, bytes], bytes] = {}
    for plain in (weights(500), bytes(1000), weights(500, 2)):
        for name in COMPRESSIONS:
            stored = bytes(compression.compress(name, plain))
            for index in (0, 1, 256):
                pair = cipher.derive(PUBLIC_SECRET, SCHEME, index, digest(stored))
                assert seen.setdefault(pair, stored + bytes([index % 255])) == stored + bytes([index % 255])
    assert len({key for key, _ in seen}) == len(seen)


def test_another_secret_doesnt_open_it() -> None:
    code = Code(2, 3)
    segment, pieces = encode_segment(b"secret weights", 0, "raw", b"s" * 32, code)
    with pytest.raises(BadInput, match="doesn't open"):
        decode_segment(encoding_of(segment, "raw", code), 0, dict(enumerate(pieces)), memoryview(bytearray(14)), PUBLIC_SECRET)


def test_a_flipped_bit_is_refused() -> None:
    code = Code(2, 3)
    segment, pieces = encode_segment(weights(600), 0, "raw", PUBLIC_SECRET, code)
    pieces[1][3] ^= 1  # type: ignore[index]
    with pytest.raises(BadInput):
        decode_segment(encoding_of(segment, "raw", code), 0, {0: pieces[0], 1: pieces[1]}, memoryview(bytearray(1200)), PUBLIC_SECRET)


def test_a_digest_of_other_bytes_is_refused() -> None:
    code = Code(1, 1)
    wrong = digest(b"other")
    sealed = memoryview(bytearray(4 + cipher.TAG))
    cipher.encrypt_into(PUBLIC_SECRET, SCHEME, 0, wrong, b"data", sealed)
    with pytest.raises(BadInput, match="digest"):
        decode_segment(encoding_of(Segment(4, 20, wrong), "raw", code), 0, {0: sealed}, memoryview(bytearray(4)), PUBLIC_SECRET)


def test_pieces_of_another_length_are_refused() -> None:
    code = Code(2, 3)
    segment, pieces = encode_segment(bytes(100), 0, "raw", PUBLIC_SECRET, code)
    with pytest.raises(BadInput, match="piece 1 has"):
        decode_segment(
            encoding_of(segment, "raw", code), 0, {0: pieces[0], 1: bytes(pieces[1])[:-1]}, memoryview(bytearray(100)), PUBLIC_SECRET
        )


def test_bf16_weights_pay_and_noise_doesnt() -> None:
    sample = weights(1 << 17)
    assert compression.choose(sample, 2) == "planes2-zstd"
    assert len(compression.compress("planes2-zstd", sample)) < 0.75 * len(sample)
    assert compression.choose(random.Random(1).randbytes(1 << 16), 2) == "raw"
    assert compression.choose(b"abc " * 5000, 1) == "lz4"  # as small, and quicker
    assert compression.choose(" ".join(map(str, range(20_000))).encode(), 1) == "zstd"
    assert compression.choose(b"", 2) == "raw"


@pytest.mark.parametrize(
    "stored",
    [
        zstandard.ZstdCompressor().compress(bytes(1 << 20)),  # declares more than expected
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20)),  # declares nothing
        zstandard.ZstdCompressor().compress(bytes(1000)) * 2,  # two frames
        zstandard.ZstdCompressor().compress(bytes(999)),
        b"not zstd at all",
        b"",
    ],
)
def test_bombs_are_refused(stored: bytes) -> None:
    with pytest.raises(BadInput, match="zstd"):
        compression.decompress_into("zstd", stored, memoryview(bytearray(1000)))


def test_wider_and_narrower_numbers_pay_too() -> None:
    """Byte planes save on fp32 and fp16 what zstd alone doesn't find."""
    values = np.random.default_rng(1).normal(0, 0.02, 1 << 18)
    for dtype, element in (("<f4", 4), ("<f2", 2)):
        sample = values.astype(dtype).tobytes()
        name = f"planes{element}-zstd"
        assert compression.choose(sample, element) == name
        assert len(compression.compress(name, sample)) < 0.87 * len(sample)
        assert len(compression.compress(name, sample)) < 0.95 * len(compression.compress("zstd", sample))


def test_fast_takes_lz4_or_nothing() -> None:
    assert compression.choose(weights(1 << 17), 2, fast=True) == "planes2-lz4"
    halves = np.random.default_rng(1).normal(0, 0.02, 1 << 16).astype("<f2").tobytes()
    assert compression.choose(halves, 2, fast=True) == "raw"
    assert compression.choose(b"abc " * 5000, 1, fast=True) == "lz4"
    assert compression.choose(b"", 2, fast=True) == "raw"


@pytest.mark.parametrize(
    "stored",
    [
        lz4.block.compress(bytes(1 << 24), store_size=False),  # gives more than expected
        lz4.block.compress(bytes(999), store_size=False),
        lz4.block.compress(bytes(1000), store_size=False) + b"x",
        lz4.block.compress(bytes(1000)),  # with a length before it
        lz4.block.compress(random.Random(1).randbytes(1000), store_size=False)[:-1],
        b"\xff" * 64,
        b"",
    ],
)
def test_lz4_that_isnt_exactly_what_was_declared_is_refused(stored: bytes) -> None:
    for name in ("lz4", "planes2-lz4", "planes4-lz4"):
        with pytest.raises(BadInput, match="lz4"):
            compression.decompress_into(name, stored, memoryview(bytearray(1000)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300), st.sampled_from([name for name in COMPRESSIONS if name != "raw"]))
def test_any_bytes_decompress_or_are_refused(stored: bytes, length: int, name: str) -> None:
    room = memoryview(bytearray(length + 8))
    with contextlib.suppress(BadInput):
        compression.decompress_into(name, stored, room[:length])
    assert bytes(room[length:]) == bytes(8)


def test_a_wide_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=22)
    stored = zstandard.ZstdCompressor(compression_params=parameters).compress(random.Random(2).randbytes(3 << 20))
    with pytest.raises(BadInput, match="window"):
        compression.decompress_into("zstd", stored, memoryview(bytearray(3 << 20)))


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(BadInput, match="lzma"):
        compression.compress("lzma", b"x")


def test_spans_cover_the_group_in_full_segments() -> None:
    full = segment_plain(2)
    assert list(segment_spans(2, 2 * full + 5)) == [(0, full), (full, full), (2 * full, 5)]
    assert list(segment_spans(2, 0)) == []


def test_a_room_used_again_leaves_nothing_of_the_segment_before() -> None:
    code = Code(3, 5)
    room = Room(code)
    encode_segment(b"\xff" * 700, 0, "raw", PUBLIC_SECRET, code, room)
    for plain in (b"a" * 100, b"b" * 101, b"c" * 102):
        again = encode_segment(plain, 1, "raw", PUBLIC_SECRET, code, room)
        assert (again[0], [bytes(piece) for piece in again[1]]) == _copied(encode_segment(plain, 1, "raw", PUBLIC_SECRET, code))


def _copied(coded: CodedSegment) -> tuple[Segment, list[bytes]]:
    return coded[0], [bytes(piece) for piece in coded[1]]


@given(st.integers(1, 5), st.integers(1, 3_000), st.data())
def test_pieces_in_any_views_open_alike(k: int, length: int, data: st.DataObject) -> None:
    code = Code(k, k + 1)
    plain = bytes(range(256)) * (length // 256 + 1)
    segment, pieces = encode_segment(plain[:length], 0, "raw", PUBLIC_SECRET, code)
    record = encoding_of(segment, "raw", code)
    views = []
    for piece in pieces[:k]:
        cut = data.draw(st.integers(0, len(piece)))
        views += [piece[:cut], piece[cut:]]
    room = memoryview(bytearray(length + SLACK))
    assert bytes(open_scattered(record, 0, views, room, PUBLIC_SECRET)) == plain[:length]
    spoilt = bytearray(pieces[0])
    spoilt[0] ^= 1
    with pytest.raises(BadInput, match="doesn't open"):
        open_scattered(record, 0, [memoryview(spoilt), *pieces[1:k]], room, PUBLIC_SECRET)
