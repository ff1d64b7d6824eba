"""What a sender signs beside every window of leaves on the data plane.

A window is up to 16 leaves. The signature makes a wrong leaf evidence: whoever holds it can show which bytes this
sender gave for which place of which shard, even when the read was cancelled after them.
"""

from __future__ import annotations

from protocol.ids import digest

DOMAIN = "mf/window/1"
SIGNATURE = 64
"""Bytes of the signature that follows each window."""


def window_body(encoding: bytes, shard: int, first: int, count: int, digests: bytes) -> bytes:
    """The bytes signed: `digests` are the 32-byte leaf digests of the `count` leaves sent, concatenated."""
    return encoding + shard.to_bytes(2, "big") + first.to_bytes(4, "big") + count.to_bytes(2, "big") + digest(digests)
