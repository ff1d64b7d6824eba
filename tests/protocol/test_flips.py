"""One bit turned in any byte of a signed record, or of a manifest: refused, or another id."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import DOMAIN, Encoding, Segment, encoding_id, parse_encoding, seal_encoding
from protocol.errors import BadInput
from protocol.framing import pack
from protocol.ids import digest
from protocol.signing import open_sealed, peer_of, seal

KEY = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
ENCODING = Encoding(
    group=bytes(32), scheme="s1", compression="raw", k=1, n=2, length=1000, segments=[Segment(1000, 1016, bytes(32))], roots=[bytes(32)] * 2
)
"""What all signed records are: a node's, a holding, a card, a grant travel in the same envelope."""


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flip_in_a_signed_record(place: float, bit: int) -> None:
    envelope = seal_encoding(KEY, ENCODING)
    data = bytearray(envelope)
    data[int(place * len(data))] ^= 1 << bit
    assert encoding_id(bytes(data)) != encoding_id(envelope)
    with pytest.raises(BadInput):
        parse_encoding(bytes(data))


def test_the_envelope_holds_without_a_flip() -> None:
    assert parse_encoding(seal_encoding(KEY, ENCODING)) == (peer_of(KEY), ENCODING)
    with pytest.raises(BadInput):
        open_sealed(seal(KEY, "mf/other/1", ENCODING), DOMAIN, Encoding)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flip_in_a_manifest_is_another_model(place: float, bit: int) -> None:
    whole = pack({"a manifest": list(range(200))})
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    assert digest(bytes(data)) != digest(whole)
