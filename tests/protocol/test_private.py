"""Covers, wraps and what is sealed: what opens, what doesn't, and that nothing shows."""

from __future__ import annotations

import hashlib
import json
import os

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from erasure import cipher
from erasure.code import Code
from erasure.segment import decode_segment, encode_segment
from protocol import limits, private
from protocol import records as rec
from protocol.encoding import PRIVATE_SCHEME
from protocol.encoding import Encoding as EncodingRecord
from protocol.errors import BadInput
from protocol.ids import ModelId, PeerId, digest, peer_from_public
from protocol.manifest import Manifest, Summary, manifest_bytes, model_id, parse_manifest
from tests.protocol import vector_cases as cases
from tests.protocol.vector_cases import example_manifest

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
MODEL = ModelId(bytes([7]) * 32)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in range(1, 5)]
PUBLIC = [key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for key in KEYS]
ME = peer_from_public(PUBLIC[0])


def seed_of(number: int) -> bytes:
    return bytes([number + 1]) * 32


def covered() -> tuple[Manifest, Manifest, bytes]:
    inner = example_manifest()
    data = manifest_bytes(inner)
    return inner, private.cover_of(SECRET, data, ME), data


def test_a_cover_opens_under_its_secret_alone_and_is_the_same_again() -> None:
    inner, cover, data = covered()
    assert private.cover_of(SECRET, data, ME) == cover
    assert parse_manifest(manifest_bytes(cover)) == cover
    assert private.open_cover(SECRET, cover) == (inner, ME)
    with pytest.raises(BadInput):
        private.open_cover(OTHER, cover)
    assert model_id(manifest_bytes(cover)) != model_id(manifest_bytes(private.cover_of(OTHER, data, ME)))


def test_a_cover_shows_sizes_and_nothing_else() -> None:
    inner, cover, data = covered()
    shown = manifest_bytes(cover)
    assert [group.length for group in cover.groups] == [group.length for group in inner.groups]
    assert cover.size() == sum(group.length for group in inner.groups)
    words = [tensor.name.encode() for tensor in inner.tensors] + [file.name.encode() for file in inner.files]
    hashes = [tensor.digest for tensor in inner.tensors] + [file.digest for file in inner.files] + [group.id for group in inner.groups]
    for secret in [*words, *hashes, digest(data), ME.encode(), inner.summary.model_type.encode()]:
        assert secret not in shown


@pytest.mark.parametrize(
    "change",
    [{"parameters": 1}, {"summary": Summary(model_type="llama")}, {"sealed": None}, {"groups": []}, {"sealed": b""}],
)
def test_a_cover_holds_nothing_else(change: dict[str, object]) -> None:
    _, cover, _ = covered()
    broken = msgspec.structs.replace(cover, **change)
    if change == {"sealed": b""}:
        with pytest.raises(BadInput):
            private.open_cover(SECRET, broken)
        return
    with pytest.raises(BadInput):
        parse_manifest(manifest_bytes(broken))


def test_a_covers_groups_are_bounded_numbered_and_different() -> None:
    _, cover, _ = covered()
    first = cover.groups[0]
    for bad in (
        msgspec.structs.replace(first, name="embed"),
        msgspec.structs.replace(first, id=b"x"),
        msgspec.structs.replace(first, length=limits.MAX_GROUP + 1),
        msgspec.structs.replace(first, spans=[]),
        msgspec.structs.replace(first, id=cover.groups[1].id),
    ):
        with pytest.raises(BadInput):
            parse_manifest(manifest_bytes(msgspec.structs.replace(cover, groups=[bad, *cover.groups[1:]])))
    public = msgspec.structs.replace(example_manifest(), sealed=b"x")
    with pytest.raises(BadInput):
        parse_manifest(manifest_bytes(public))


def test_a_cover_with_other_groups_than_it_seals_is_refused() -> None:
    _, cover, _ = covered()
    swapped = msgspec.structs.replace(cover, groups=[
        msgspec.structs.replace(group, length=group.length + 64) for group in cover.groups
    ])  # fmt: skip
    with pytest.raises(BadInput):
        private.open_cover(SECRET, swapped)


def test_the_secret_reaches_its_readers_and_nobody_else() -> None:
    wraps = [private.wrap(SECRET, public, MODEL, ME) for public in PUBLIC[1:3]]
    wraps += private.decoys(len(wraps), os.urandom(8 * private.WRAP))
    assert len(wraps) == 8
    assert {len(wrapped) for wrapped in wraps} == {private.WRAP}
    for number in (1, 2):
        assert private.unwrap(wraps, private.exchange_seed(seed_of(number)), MODEL, ME) == SECRET
    for number in (0, 3):
        assert private.unwrap(wraps, private.exchange_seed(seed_of(number)), MODEL, ME) is None
    reader = private.exchange_seed(seed_of(1))
    assert private.unwrap(wraps, reader, ModelId(bytes(32)), ME) is None, "good for this model alone"
    assert private.unwrap(wraps, reader, MODEL, peer_from_public(PUBLIC[1])) is None, "and this publisher's record"
    assert private.unwrap([b"", bytes(80), b"\xff" * 80, *wraps], reader, MODEL, ME) == SECRET
    assert not any(public in wrapped for public in PUBLIC for wrapped in wraps)


@pytest.mark.parametrize("identity", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"short", (2**255 - 20).to_bytes(32, "little")])
def test_keys_that_nothing_can_be_sealed_to(identity: bytes) -> None:
    with pytest.raises(BadInput):
        private.exchange_key(identity)


def test_the_exchange_key_is_the_same_from_both_sides() -> None:
    """RFC 7748's and RFC 8032's words for one key, of libsodium's documented example form."""
    for number, public in enumerate(PUBLIC):
        theirs = private.exchange_seed(seed_of(number)).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        assert private.exchange_key(public).public_bytes(Encoding.Raw, PublicFormat.Raw) == theirs
    assert hashlib.sha512(seed_of(0)).digest()[:32] != seed_of(0)


def said(**more: object) -> private.Said:
    fields: dict[str, object] = {
        "name": "demo", "version": "1", "label": "ann", "size": 1, "parameters": 1, "created": 1, "summary": Summary(model_type="llama"),
        "readers": [private.Reader(PUBLIC[0], "owner"), private.Reader(PUBLIC[1], "reader")], "nodes": [ME],
    }  # fmt: skip
    return private.Said(**(fields | more))  # type: ignore[arg-type]


def test_what_is_said_is_sealed_and_roles_are_the_highest() -> None:
    sealed = private.seal_said(SECRET, said())
    assert private.open_said(SECRET, sealed) == said()
    assert b"demo" not in sealed
    assert PUBLIC[1] not in sealed
    with pytest.raises(BadInput):
        private.open_said(OTHER, sealed)
    twice = said(readers=[private.Reader(PUBLIC[1], "reader"), private.Reader(PUBLIC[1], "admin")])
    assert twice.role_of(PUBLIC[1]) == "admin"
    assert twice.role_of(PUBLIC[2]) is None
    assert private.at_least("admin", "editor")
    assert not private.at_least("editor", "admin")
    assert not private.at_least(None, "reader")


@pytest.mark.parametrize(
    "broken",
    [{"name": "../x"}, {"readers": []}, {"readers": [private.Reader(b"short", "owner")]}, {"readers": [private.Reader(PUBLIC[0], "king")]},
     {"size": -1}, {"readers": [private.Reader(PUBLIC[0], "reader")] * (limits.MAX_READERS + 1)}],
)  # fmt: skip
def test_what_may_not_be_said(broken: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        private.seal_said(SECRET, said(**broken))


def test_readers_records_are_bounded() -> None:
    fine = rec.Readers(sequence=1, expires=10, model=MODEL, wraps=[bytes(80)], sealed=b"x")
    assert rec.open_record(rec.seal_record(KEYS[0], fine), rec.Readers, 0) == (ME, fine)
    empty = msgspec.structs.replace(fine, wraps=[], sealed=b"")
    assert rec.open_record(rec.seal_record(KEYS[0], empty), rec.Readers, 0) == (ME, empty)
    late = msgspec.structs.replace(fine, expires=limits.READERS_LIFETIME + limits.CLOCK_TOLERANCE + 1)
    with pytest.raises(BadInput):
        rec.open_record(rec.seal_record(KEYS[0], late), rec.Readers, 0)
    for bad in ({"model": b"x"}, {"wraps": [bytes(79)]}, {"wraps": [bytes(80)] * (limits.MAX_READERS + 1)}, {"wraps": []}, {"sealed": b""}):
        with pytest.raises(BadInput):
            rec.open_record(rec.seal_record(KEYS[0], msgspec.structs.replace(fine, **bad)), rec.Readers, 0)


@given(st.binary(min_size=1, max_size=600), st.integers(0, 1 << 20))
def test_a_private_segment_has_no_known_name(plain: bytes, index: int) -> None:
    code, group = Code(2, 3), bytes([9]) * 32
    segment, pieces = encode_segment(plain, index, "raw", SECRET, code, None, PRIVATE_SCHEME, group)
    assert segment.digest not in (digest(plain), cipher.name_of(OTHER, PRIVATE_SCHEME, group, index, plain))
    assert segment.digest != cipher.name_of(SECRET, PRIVATE_SCHEME, group, index + 1, plain)
    assert segment.digest != cipher.name_of(SECRET, PRIVATE_SCHEME, bytes(32), index, plain)
    record = EncodingRecord(group=group, scheme=PRIVATE_SCHEME, compression="raw", k=2, n=3, length=len(plain),
                            segments=[segment] * (index + 1) if index < 4 else [segment], roots=[bytes(32)] * 3)  # fmt: skip
    if index >= 4:
        return
    out = bytearray(len(plain))
    decode_segment(record, index, {0: bytes(pieces[0]), 2: bytes(pieces[2])}, memoryview(out), SECRET)
    assert bytes(out) == plain
    with pytest.raises(BadInput):
        decode_segment(record, index, {0: bytes(pieces[0]), 2: bytes(pieces[2])}, memoryview(out), OTHER)


def test_a_publisher_is_a_peer() -> None:
    assert isinstance(private.open_cover(SECRET, covered()[1])[1], str)
    assert PeerId(ME) == ME


def test_the_pinned_ones_open() -> None:
    pinned = json.loads((cases.VECTORS / "private.json").read_text())
    key = private.exchange_seed(bytes(range(32)))
    assert private.unwrap([bytes.fromhex(pinned["wrap"])], key, ModelId(cases.ID), cases.PEER) == cases.SECRET
    publisher, record = rec.open_record(bytes.fromhex(pinned["Readers"]), rec.Readers, cases.NOW)
    assert (publisher, record) == (cases.PEER, cases.READERS)
    assert private.open_said(cases.SECRET, record.sealed) == cases.SAID
    inner, named = private.open_cover(cases.SECRET, parse_manifest(bytes.fromhex(pinned["cover"])))
    assert (inner, named) == (cases.example_manifest(), cases.PEER)
