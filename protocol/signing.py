"""Signed envelopes: who says what, under which domain.

The signature covers the domain tag, a zero byte and the body's original bytes; the tag keeps a holding
from ever being read as a card. The signer is a PeerID, from which the key is read: no lookup, nothing to
trust. A record travels as the envelope it was made in and is never re-encoded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record, pack, unpack
from protocol.ids import PeerId, peer_from_public, public_from_peer

T = TypeVar("T")


class Envelope(Record):
    domain: str
    signer: str
    body: bytes
    signature: bytes


def _message(domain: str, body: bytes) -> bytes:
    return domain.encode() + b"\x00" + body


@lru_cache(maxsize=16)
def peer_of(key: Ed25519PrivateKey) -> PeerId:
    return peer_from_public(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def sign_bytes(key: Ed25519PrivateKey, domain: str, body: bytes) -> bytes:
    """The bare 64-byte signature."""
    return key.sign(_message(domain, body))


def verify_bytes(peer: str, domain: str, body: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_from_peer(peer)).verify(signature, _message(domain, body))
    except (InvalidSignature, ValueError, BadInput):
        return False
    return True


def seal(key: Ed25519PrivateKey, domain: str, record: Record) -> bytes:
    """The envelope's bytes for a record signed by `key`."""
    body = pack(record)
    signature = sign_bytes(key, domain, body)
    return pack(Envelope(domain=domain, signer=peer_of(key), body=body, signature=signature))


def open_sealed(data: bytes, domain: str, kind: type[T], limit: int = limits.MAX_FRAME) -> tuple[PeerId, T]:
    """Checks the envelope before the body is parsed; `BadInput` names the domain and the rule broken."""
    envelope = unpack(data, Envelope, domain, limit)
    if envelope.domain != domain:
        raise BadInput(f"{domain}: signed for {envelope.domain[:64]!r} instead")
    if not verify_bytes(envelope.signer, domain, envelope.body, envelope.signature):
        raise BadInput(f"{domain}: the signature by {envelope.signer[:64]} doesn't hold")
    return PeerId(envelope.signer), unpack(envelope.body, kind, domain, limit)
