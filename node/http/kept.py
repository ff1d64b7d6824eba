"""What is kept of answers, in memory alone and sealed: the result cache, results of async requests, idempotent replies.

These are the named exceptions to "nothing of a prompt or reply outlives its request". Each entry is sealed under a key that is made at
start
and never leaves the process, bound to whose it is: another caller's name doesn't open it, and a stray copy of the memory of one entry
is not a reply. Bounded in bytes and time; the oldest go first.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.ids import digest

MOST_BYTES = 64 << 20
HOUR = 3_600.0


@dataclass(frozen=True)
class _Sealed:
    data: bytes
    until: float


class Kept:
    """Bytes by (whose, name) for `lifetime` seconds; at most `most` bytes in all."""

    def __init__(self, lifetime: float = HOUR, most: int = MOST_BYTES, now: Callable[[], float] = time.monotonic) -> None:
        self._lifetime = lifetime
        self._most = most
        self._now = now
        self._key = AESGCM(AESGCM.generate_key(256))
        self._entries: OrderedDict[bytes, _Sealed] = OrderedDict()
        self._bytes = 0

    def put(self, whose: str, name: bytes, data: bytes) -> None:
        place, nonce = self._place(whose, name), os.urandom(12)
        self._drop(place)
        if len(data) > self._most // 8:
            return
        sealed = nonce + self._key.encrypt(nonce, data, place)
        self._entries[place] = _Sealed(sealed, self._now() + self._lifetime)
        self._bytes += len(sealed)
        while self._bytes > self._most or self._oldest_is_over():
            self._drop(next(iter(self._entries)))

    def get(self, whose: str, name: bytes) -> bytes | None:
        place = self._place(whose, name)
        entry = self._entries.get(place)
        if entry is None:
            return None
        if entry.until <= self._now():
            self._drop(place)
            return None
        return self._key.decrypt(entry.data[:12], entry.data[12:], place)

    def drop(self, whose: str, name: bytes) -> None:
        self._drop(self._place(whose, name))

    @staticmethod
    def _place(whose: str, name: bytes) -> bytes:
        return digest(digest(whose.encode()) + name)

    def _oldest_is_over(self) -> bool:
        return bool(self._entries) and next(iter(self._entries.values())).until <= self._now()

    def _drop(self, place: bytes) -> None:
        gone = self._entries.pop(place, None)
        if gone is not None:
            self._bytes -= len(gone.data)
