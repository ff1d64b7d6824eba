"""Leave for one transfer: signed by the node that serves it, carried by its client in `MF-Grant`.

A grant admits many Ranges of the shards it lists at that node alone; it must be opened within 60 s of
`issued` and lasts for the response. `verb` is "get" or "put".
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.errors import BadInput, Forbidden
from protocol.framing import Record
from protocol.ids import PeerId
from protocol.signing import open_sealed, seal

DOMAIN = "mf/grant/1"
MAX_GRANT = 16 * limits.KIB


class Grant(Record):
    """`issued` is Unix seconds by the server's clock; `max_bytes` bounds what the grant may move in all."""

    verb: str
    client: str
    server: str
    encoding: bytes
    shards: list[int]
    max_bytes: int
    nonce: bytes
    issued: int


def seal_grant(key: Ed25519PrivateKey, grant: Grant) -> bytes:
    return seal(key, DOMAIN, grant)


def open_grant(data: bytes, server: PeerId, now: float) -> Grant:
    """The grant, if `server` signed it for itself and it may still be opened; else `Forbidden` or `BadInput`."""
    signer, grant = open_sealed(data, DOMAIN, Grant, MAX_GRANT)
    if signer != server or grant.server != server:
        raise Forbidden(f"the grant is for node {grant.server[:64]}, not for this one")
    if grant.verb not in ("get", "put") or len(grant.encoding) != 32 or len(grant.nonce) != 16:
        raise BadInput("grant: verb, encoding or nonce is malformed")
    if not grant.shards or not all(0 <= j < limits.MAX_SHARDS for j in grant.shards) or len(set(grant.shards)) != len(grant.shards):
        raise BadInput("grant: shards are distinct numbers below 256")
    if not 0 < grant.max_bytes < 1 << 48:
        raise BadInput("grant: max_bytes is out of range")
    if now - grant.issued > limits.GRANT_OPEN_WITHIN or grant.issued > now + limits.CLOCK_TOLERANCE:
        raise Forbidden("the grant was not opened within 60 s", hint="ask for a new one")
    return grant


def header_from(grant: bytes) -> str:
    return base64.urlsafe_b64encode(grant).decode()


def grant_from_header(text: str) -> bytes:
    if len(text) > 2 * MAX_GRANT:
        raise BadInput("grant: longer than 16 KiB")
    try:
        return base64.urlsafe_b64decode(text)
    except ValueError as error:
        raise BadInput("grant: not base64") from error
