"""A window on its way out: leaves read from the store, hashed as they are and signed, in one buffer that serves again."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardKey, ShardReader
from protocol import limits
from protocol.encoding import leaf_count, leaf_digests
from protocol.errors import BadInput, MfError
from protocol.signing import sign_bytes
from protocol.windows import DOMAIN, SIGNATURE, window_body

WINDOW = limits.WINDOW_LEAVES * limits.LEAF
SIGNATURES_KEPT = 16_384
"""Of a MiB of shard each: 16 GiB of what is asked for, in some 6 MiB."""


def span_bytes(length: int, first: int, count: int) -> int:
    """Shard bytes in `count` leaves from `first`; `BadInput` when the shard hasn't so many."""
    if count < 1 or first < 0 or first + count > leaf_count(length):
        raise BadInput(f"leaves {first} to {first + count} were asked, the shard has {leaf_count(length)}")
    return min(length, (first + count) * limits.LEAF) - first * limits.LEAF


def body_bytes(length: int, first: int, count: int) -> int:
    """Bytes of the answer without a leaf list: the leaves and a signature for each window."""
    return span_bytes(length, first, count) + -(-count // limits.WINDOW_LEAVES) * SIGNATURE


class WindowSigner:
    """Fills rooms with windows and signs them.

    A signature made is kept while the file stays the same: a shard that many ask for is hashed once, not for each of them. What rots
    on the disk in between goes out under the signature of what it was; the client sees that the two don't fit, and scrubbing finds it.
    """

    def __init__(self, signer: Ed25519PrivateKey) -> None:
        self._signer = signer
        self._made: dict[tuple[ShardKey, int, int], tuple[object, bytes]] = {}

    def read(self, reader: ShardReader, key: ShardKey, first: int, count: int, room: memoryview) -> memoryview:
        """The bytes of one window and its signature, at the start of `room`."""
        window = room[: span_bytes(reader.length, first, count) + SIGNATURE]
        view = window[:-SIGNATURE]
        read = reader.read_into(first * limits.LEAF, view)
        if read != len(view):
            raise MfError(f"shard {key.shard} ends early on the disk: {read} of {len(view)} bytes at leaf {first}")
        return self._signed(reader, key, first, count, window)

    def cached(self, reader: ShardReader, key: ShardKey, first: int, count: int, room: memoryview) -> memoryview | None:
        """The same at once, in half a millisecond at most; None when the disk must be waited for."""
        window = room[: span_bytes(reader.length, first, count) + SIGNATURE]
        if reader.read_cached(first * limits.LEAF, window[:-SIGNATURE]) != len(window) - SIGNATURE:
            return None
        return self._signed(reader, key, first, count, window)

    def _signed(self, reader: ShardReader, key: ShardKey, first: int, count: int, window: memoryview) -> memoryview:
        """What is signed is what was read, now or while the file has been the same, not what the leaf list says."""
        mark, (made_for, signature) = reader.mark(), self._made.get((key, first, count), (None, b""))
        if mark is None or mark != made_for:
            digests = b"".join(leaf_digests(window[:-SIGNATURE]))
            signature = sign_bytes(self._signer, DOMAIN, window_body(key.encoding, key.shard, first, count, digests))
            self._keep((key, first, count), mark, signature)
        window[-SIGNATURE:] = signature
        return window

    def _keep(self, place: tuple[ShardKey, int, int], mark: object, signature: bytes) -> None:
        if len(self._made) >= SIGNATURES_KEPT:
            # Several threads may be here: whichever went first has made room.
            self._made.pop(next(iter(self._made), place), None)
        self._made[place] = mark, signature
