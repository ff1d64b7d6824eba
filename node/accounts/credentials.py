"""Text forms of what an account hands out: API keys and refresh tokens. Pure.

An API key is an Ed25519 private key: at its home it is sent as it is (`Authorization: Bearer mf_live_…`), anywhere else it signs. Both
forms begin with
the fingerprint of their home, so that a node to which a stranger's key is sent by mistake can say where it belongs, and does nothing
with it.
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import Unauthorized
from protocol.ids import PeerId, digest, public_from_peer

KEY_PREFIX = "mf_live_"
REFRESH_PREFIX = "mf_ref_"
HOME = 5
"""Bytes of the home's fingerprint."""


def home_mark(home: PeerId) -> bytes:
    return digest(public_from_peer(home))[:HOME]


def key_text(home: PeerId, seed: bytes) -> str:
    return _text(KEY_PREFIX, home_mark(home) + seed)


def key_parts(text: str) -> tuple[bytes, bytes]:
    """(the home's mark, the 32-byte seed) of an API key; `Unauthorized` for what isn't one."""
    raw = _raw(KEY_PREFIX, text)
    if len(raw) != HOME + 32:
        raise Unauthorized("the API key is broken: cut short, or a letter changed")
    return raw[:HOME], raw[HOME:]


def signing_key(text: str) -> Ed25519PrivateKey:
    """What the holder of an API key signs with."""
    return Ed25519PrivateKey.from_private_bytes(key_parts(text)[1])


def refresh_text(home: PeerId, family: bytes, secret: bytes) -> str:
    return _text(REFRESH_PREFIX, home_mark(home) + family + secret)


def refresh_parts(text: str) -> tuple[bytes, bytes, bytes]:
    """(the home's mark, the family's id, the secret)."""
    raw = _raw(REFRESH_PREFIX, text)
    if len(raw) != HOME + 16 + 32:
        raise Unauthorized("the refresh token is broken: cut short, or a letter changed")
    return raw[:HOME], raw[HOME : HOME + 16], raw[HOME + 16 :]


def _text(prefix: str, raw: bytes) -> str:
    return prefix + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(prefix: str, text: str) -> bytes:
    body = text[len(prefix) :]
    try:
        if not text.startswith(prefix) or len(text) > 128:
            raise ValueError
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise Unauthorized("not a credential of this kind") from None
    if _text(prefix, raw) != text:
        raise Unauthorized("not a credential of this kind")
    return raw
