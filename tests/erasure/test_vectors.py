"""Pinned: other bytes here mean that shards of one version can't be read by another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from erasure import compression
from erasure.cipher import PUBLIC_SECRET, derive
from erasure.code import Code
from erasure.segment import encode_segment
from protocol.encoding import COMPRESSIONS, leaf_digests, shard_root
from protocol.windows import window_body


def test_key_and_nonce() -> None:
    assert PUBLIC_SECRET.hex() == "dee4aec25e25d5ea23ec734027c2789276ab33131e68ef7bef7d1e7bee46d71e"
    key, nonce = derive(PUBLIC_SECRET, "s1", 5, bytes(range(32)))
    assert key.hex() == "a02cac55a9cf38f988e812dd3ca35424e751bc0282bd02a765340a981a2466aa"
    assert nonce.hex() == "3eb7f2da74e7aa3213dc4300"


def test_the_pieces_of_a_raw_segment() -> None:
    segment, pieces = encode_segment(bytes(range(256)) * 4, 1, "raw", PUBLIC_SECRET, Code(3, 5))
    assert (segment.plain, segment.coded) == (1024, 1040)
    assert segment.digest.hex() == "882179b8dbccd285cda241d968cfcccb3156c5edac2fa3761bb6eda7ff8cb172"
    roots = [shard_root(len(piece), leaf_digests(memoryview(piece))).hex()[:16] for piece in pieces]
    assert roots == ["015ea93ff587bd1d", "0cdee2a0b471adb3", "d8cb656a8ae357df", "b3056db4276eb63b", "9478e55452e04a53"]


def test_what_a_window_signs() -> None:
    body = window_body(bytes(range(32)), 258, 3, 16, b"d" * 64)
    assert body[:32] == bytes(range(32))
    assert body[32:40].hex() == "0102000000030010"
    assert body[40:].hex() == "7642afe1579e07532af8732e0c964440f728f74803528d7c40ef7c6cadbc1406"


COMPRESSED = json.loads((Path(__file__).parents[1] / "vectors" / "compressions.json").read_text())
"""Compressed bytes may differ from one version of a library to the next; what they decompress to may not."""


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_each_compression_is_read_back(name: str) -> None:
    plain = bytes.fromhex(COMPRESSED["plain"])
    room = memoryview(bytearray(len(plain)))
    compression.decompress_into(name, bytes.fromhex(COMPRESSED[name]), room)
    assert bytes(room) == plain
