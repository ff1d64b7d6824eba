"""No (key, nonce) pair ever meets two inputs: the same group under several compressions, levels, versions of a compressor, or changed."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasure import cipher, compression, segment
from erasure.cipher import PUBLIC_SECRET, derive
from erasure.code import Code
from protocol.encoding import COMPRESSIONS, SCHEME
from protocol.ids import digest

Sealed = dict[tuple[bytes, bytes], set[bytes]]


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> Sealed:
    """What each pair was given to seal, seen at the cipher itself."""
    seen: Sealed = defaultdict(set)
    real = cipher.encrypt_into

    def watched(secret: bytes, scheme: str, index: int, name: bytes, data: cipher.Buffer, out: memoryview) -> None:
        seen[derive(secret, scheme, index, name)].add(bytes(data))
        real(secret, scheme, index, name, data, out)

    monkeypatch.setattr(segment.cipher, "encrypt_into", watched)
    return seen


def weights(seed: int, size: int = 60_000) -> bytes:
    import numpy as np

    return (np.random.default_rng(seed).standard_normal(size // 4).astype("f4").view("u4") >> 16).astype("u2").tobytes() * 2


def test_one_group_under_every_compression_and_level(met: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, code = weights(1), Code(3, 5)
    sealed = []
    for level in (1, 3, 19):
        monkeypatch.setattr(compression, "LEVEL", level)
        monkeypatch.setattr(compression, "_local", type("Fresh", (), {})())
        for name in COMPRESSIONS:
            for index in (0, 1, 0):
                line, pieces = segment.encode_segment(plain, index, name, PUBLIC_SECRET, code)
                sealed.append((line.digest, index, b"".join(pieces[:3])))
    assert all(len(inputs) == 1 for inputs in met.values())
    assert len({inputs for found in met.values() for inputs in found}) >= 3, "the levels make other bytes, else this shows nothing"
    # The other way round: equal bytes under equal names are sealed equally, so that shards are shared.
    assert len({(name, index) for name, index, _ in sealed}) == len(set(sealed)) == len(met)


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_a_pair_belongs_to_one_input(one: bytes, other: bytes, first: int, second: int) -> None:
    pairs = [derive(PUBLIC_SECRET, SCHEME, index, digest(data)) for index, data in ((first, one), (second, other))]
    assert (pairs[0] == pairs[1]) == ((first, one) == (second, other))
    assert pairs[0] != derive(digest(b"another secret"), SCHEME, first, digest(one))


def test_a_changed_byte_changes_the_key() -> None:
    data = Random(1).randbytes(1000)
    keys = {derive(PUBLIC_SECRET, SCHEME, 0, digest(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]))[0] for at in range(1000)}
    assert len(keys) == 1000
