"""Step frames as they go over a connection of their own: 4 bytes of big-endian length, then the frame by AES-256-GCM.

The nonce is the frame's number from 0 (12 bytes, big-endian), the length goes in as associated data. A key is good for one connection, in
one direction, and for one `Sealer`.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import limits
from protocol.errors import BadInput

KEY, TAG = 32, 16


class Sealer:
    """The sender's side."""

    def __init__(self, key: bytes) -> None:
        self._key = AESGCM(key)
        self._count = 0

    def seal(self, frame: bytes) -> bytes:
        """The next frame's bytes; what they give has to be sent, and in this order. `BadInput` for one that is too long."""
        if len(frame) > limits.MAX_ACTIVATION_FRAME:
            raise BadInput(f"a step frame of {len(frame)} bytes, at most {limits.MAX_ACTIVATION_FRAME} travel")
        length = (len(frame) + TAG).to_bytes(4, "big")
        sealed = self._key.encrypt(self._count.to_bytes(12, "big"), frame, length)
        self._count += 1
        return length + sealed
