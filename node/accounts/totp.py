"""One-time codes (RFC 6238: SHA-1, 6 digits, 30 s, what every authenticator app does) and recovery codes. Pure."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from urllib.parse import quote

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP

from protocol.ids import digest

STEP = 30
WINDOW = 1
RECOVERY_CODES = 10


def new_secret(rng: Callable[[int], bytes]) -> str:
    """20 random bytes in base32, as apps take it."""
    return base64.b32encode(rng(20)).decode()


def uri(secret: str, name: str, issuer: str) -> str:
    return f"otpauth://totp/{quote(issuer)}:{quote(name)}?secret={secret}&issuer={quote(issuer)}"


def code_at(secret: str, counter: int) -> str:
    return HOTP(base64.b32decode(secret), 6, SHA1(), enforce_key_length=False).generate(counter).decode()


def matching(secret: str, code: str, now: float, last: int) -> int | None:
    """The counter that `code` is of, one step of clock either way; None for a wrong one, and for one used before (`last` or older)."""
    at = int(now) // STEP
    for counter in range(at - WINDOW, at + WINDOW + 1):
        if counter > last and hmac.compare_digest(code_at(secret, counter), code.strip()):
            return counter
    return None


def new_recovery_codes(rng: Callable[[int], bytes]) -> list[str]:
    """Ten of 80 bits each, in two halves for those who type them."""
    texts = [base64.b32encode(rng(10)).decode().lower() for _ in range(RECOVERY_CODES)]
    return [f"{text[:8]}-{text[8:]}" for text in texts]


def recovery_hash(code: str) -> bytes:
    """They have 80 random bits: a plain hash is enough."""
    return digest(code.strip().lower().replace("-", "").replace(" ", "").encode())
