"""AES-256-GCM for segments, with key and nonce from what is sealed.

Both come from keyed BLAKE3 over (scheme, segment index, BLAKE3 of the bytes to be sealed). Other bytes therefore get another
key: no (key, nonce) pair ever meets two inputs, whichever compression made them, and equal groups give equal shards.
A public group's secret is a constant of the protocol: its cipher hides nothing, it keeps one path for public and private. Segments of a
private one are named by a hash keyed with its secret, over group and index too: neither known bytes nor two equal segments show.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from protocol.encoding import PRIVATE_SCHEME
from protocol.errors import BadInput
from protocol.ids import digest as digest_of
from protocol.private import segment_key

TAG = 16
"""Bytes that sealing adds."""

SLACK = 15
"""Bytes beyond the plain ones that `open_views` wants room for: a cipher's block less one."""

PUBLIC_SECRET = blake3(b"mf/public-group/1").digest()

Buffer = bytes | bytearray | memoryview


def derive(secret: bytes, scheme: str, index: int, digest: bytes) -> tuple[bytes, bytes]:
    """(key of 32 bytes, nonce of 12 bytes) of one segment."""
    if len(secret) != 32 or len(digest) != 32:
        raise BadInput("a segment's secret and digest have 32 bytes each")
    name = scheme.encode()
    message = b"mf/segment/1\x00" + len(name).to_bytes(1, "big") + name + index.to_bytes(8, "big") + digest
    both = blake3(message, key=secret).digest(length=44)
    return both[:32], both[32:]


def name_of(secret: bytes, scheme: str, group: bytes, index: int, stored: Buffer) -> bytes:
    """The digest that the encoding has of a segment: of the bytes given to the cipher."""
    if scheme != PRIVATE_SCHEME:
        return digest_of(stored)
    hasher = blake3(group + index.to_bytes(8, "big"), key=segment_key(secret))
    hasher.update(stored)
    return hasher.digest()


def encrypt_into(secret: bytes, scheme: str, index: int, digest: bytes, data: Buffer, out: memoryview) -> None:
    """Seals `data`, whose BLAKE3 is `digest`, into `out` of len(data) + TAG bytes."""
    key, nonce = derive(secret, scheme, index, digest)
    AESGCM(key).encrypt_into(nonce, data, None, out)


def decrypt_into(secret: bytes, scheme: str, index: int, digest: bytes, sealed: Buffer, out: memoryview) -> None:
    """Opens `sealed` into `out` of len(sealed) - TAG bytes; `BadInput` when it was sealed otherwise. The caller checks the digest."""
    key, nonce = derive(secret, scheme, index, digest)
    try:
        AESGCM(key).decrypt_into(nonce, sealed, None, out)
    except InvalidTag as error:
        raise BadInput(f"segment {index} doesn't open: it was sealed under another secret or digest") from error


def open_views(secret: bytes, scheme: str, index: int, digest: bytes, views: Sequence[memoryview], tag: bytes, out: memoryview) -> None:
    """The same from sealed bytes that lie in several places, without bringing them together first: a third of the time.

    `out` holds their sum and `SLACK` more; nothing in it may be used before this returns.
    """
    key, nonce = derive(secret, scheme, index, digest)
    opening = Cipher(AES256(key), GCM(nonce, tag)).decryptor()
    done = 0
    for view in views:
        done += opening.update_into(view, out[done:])
    try:
        opening.finalize()
    except InvalidTag as error:
        raise BadInput(f"segment {index} doesn't open: it was sealed under another secret or digest") from error
