"""A window on its way out: leaves read from the store, hashed as they are and signed, in one buffer."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardKey, ShardReader
from protocol import limits
from protocol.encoding import leaf_count, leaf_digests
from protocol.errors import BadInput, MfError
from protocol.signing import sign_bytes
from protocol.windows import DOMAIN, SIGNATURE, window_body

WINDOW = limits.WINDOW_LEAVES * limits.LEAF


def span_bytes(length: int, first: int, count: int) -> int:
    """Shard bytes in `count` leaves from `first`; `BadInput` when the shard hasn't so many."""
    if count < 1 or first < 0 or first + count > leaf_count(length):
        raise BadInput(f"leaves {first} to {first + count} were asked, the shard has {leaf_count(length)}")
    return min(length, (first + count) * limits.LEAF) - first * limits.LEAF


def body_bytes(length: int, first: int, count: int) -> int:
    """Bytes of the answer without a leaf list: the leaves and a signature for each window."""
    return span_bytes(length, first, count) + -(-count // limits.WINDOW_LEAVES) * SIGNATURE


def signed_window(reader: ShardReader, signer: Ed25519PrivateKey, key: ShardKey, first: int, count: int) -> bytearray:
    """The bytes of one window and its signature. What is signed is what was read just now, not what the leaf list says."""
    window = _room(reader, first, count)
    view = memoryview(window)[:-SIGNATURE]
    read = reader.read_into(first * limits.LEAF, view)
    if read != len(view):
        raise MfError(f"shard {key.shard} ends early on the disk: {read} of {len(view)} bytes at leaf {first}")
    _sign(window, view, signer, key, first, count)
    return window


def cached_window(reader: ShardReader, signer: Ed25519PrivateKey, key: ShardKey, first: int, count: int) -> bytearray | None:
    """The same at once, in half a millisecond; None when the disk must be waited for."""
    window = _room(reader, first, count)
    view = memoryview(window)[:-SIGNATURE]
    if reader.read_cached(first * limits.LEAF, view) != len(view):
        return None
    _sign(window, view, signer, key, first, count)
    return window


def _room(reader: ShardReader, first: int, count: int) -> bytearray:
    return bytearray(span_bytes(reader.length, first, count) + SIGNATURE)


def _sign(window: bytearray, view: memoryview, signer: Ed25519PrivateKey, key: ShardKey, first: int, count: int) -> None:
    digests = b"".join(leaf_digests(view))
    memoryview(window)[-SIGNATURE:] = sign_bytes(signer, DOMAIN, window_body(key.encoding, key.shard, first, count, digests))
