"""Names of things: 32-byte BLAKE3 ids with a text form, and PeerIDs.

Text forms are lowercase base32 without padding of a version byte (1) and the id, after a prefix that
says what it is: `mfm1…` a model, `mfe1…` an encoding, `mft1…` a ticket. A PeerID is libp2p's: the
base58 identity multihash of the protobuf-encoded Ed25519 public key (libp2p peer-ids spec).
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import NewType

import base58
from blake3 import blake3

from protocol.errors import BadInput

ModelId = NewType("ModelId", bytes)
EncodingId = NewType("EncodingId", bytes)
GroupId = NewType("GroupId", bytes)
PeerId = NewType("PeerId", str)

PEERS_KEPT = 4096
"""Base58 costs more than checking a signature: what was converted is kept."""

_VERSION = b"\x01"
_PEER_PREFIX = bytes.fromhex("002408011220")


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3, 32 bytes."""
    return blake3(data).digest()


def _base32(prefix: str, payload: bytes) -> str:
    return prefix + base64.b32encode(_VERSION + payload).decode().rstrip("=").lower()


def _unbase32(prefix: str, text: str, what: str) -> bytes:
    if not text.startswith(prefix):
        raise BadInput(f"not a {what}: {text[:24]!r} doesn't begin with {prefix}")
    body = text[len(prefix) :]
    try:
        raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except ValueError as error:
        raise BadInput(f"broken {what}: cut short, or a letter changed") from error
    if raw[:1] != _VERSION:
        raise BadInput(f"broken {what}: version {raw[:1].hex() or 'none'}, this node knows 01")
    if _base32(prefix, raw[1:]) != text:
        raise BadInput(f"broken {what}: not in its canonical form")
    return raw[1:]


def _id_from(prefix: str, text: str, what: str) -> bytes:
    raw = _unbase32(prefix, text, what)
    if len(raw) != 32:
        raise BadInput(f"broken {what}: {len(raw)} bytes instead of 32")
    return raw


def model_text(model: ModelId) -> str:
    return _base32("mfm1", model)


def model_from(text: str) -> ModelId:
    return ModelId(_id_from("mfm1", text, "model id"))


def encoding_text(encoding: EncodingId) -> str:
    return _base32("mfe1", encoding)


def encoding_from(text: str) -> EncodingId:
    return EncodingId(_id_from("mfe1", text, "encoding id"))


def ticket_text(payload: bytes) -> str:
    return _base32("mft1", payload)


def ticket_payload(text: str) -> bytes:
    return _unbase32("mft1", text, "ticket")


@lru_cache(maxsize=PEERS_KEPT)
def peer_from_public(public: bytes) -> PeerId:
    """PeerID of a raw 32-byte Ed25519 public key."""
    if len(public) != 32:
        raise BadInput(f"an Ed25519 public key has 32 bytes, not {len(public)}")
    return PeerId(base58.b58encode(_PEER_PREFIX + public).decode())


@lru_cache(maxsize=PEERS_KEPT)
def public_from_peer(peer: str) -> bytes:
    """The raw public key inside an Ed25519 PeerID; `BadInput` for any other kind of id."""
    try:
        raw = base58.b58decode(peer) if len(peer) <= 64 else b""
    except ValueError:
        raw = b""
    if len(raw) != 38 or not raw.startswith(_PEER_PREFIX) or base58.b58encode(raw).decode() != peer:
        raise BadInput(f"not an Ed25519 PeerID: {peer[:64]!r}")
    return raw[6:]


def fingerprint(public: bytes) -> str:
    """Eight characters that tell two keys with one label apart (`label~fingerprint`)."""
    return base64.b32encode(digest(public)[:5]).decode().lower()
