"""Passwords: argon2id, one at a time on a thread of their own.

One hash takes 19 MiB and tens of milliseconds, on purpose. A flood of logins must not take them from everybody, so
few wait in line and the rest is refused at once; an unknown user costs the same as a wrong password, so that a guesser can't
tell them apart by the clock. Parameters: OWASP's (m = 19 MiB, t = 2, p = 1); they stand in each hash, so raising them keeps old ones.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from protocol.errors import BadInput, Busy

T = TypeVar("T")
LEAST, MOST = 8, 1_024
"""Characters of a password."""
_MEMORY_KIB, _ITERATIONS = 19_456, 2
_WAITING = 16


def check_password(password: str) -> None:
    """`BadInput` for one that is too short, too long, or one character over and over."""
    if not LEAST <= len(password) <= MOST or len(set(password)) < 4:
        raise BadInput(f"a password has {LEAST} to {MOST} characters, not all alike", details={"param": "password"})


def hash_password(password: str) -> str:
    """In PHC form, with a salt of its own."""
    made = Argon2id(salt=os.urandom(16), length=32, iterations=_ITERATIONS, lanes=1, memory_cost=_MEMORY_KIB)
    return made.derive_phc_encoded(password.encode())


def password_holds(password: str, phc: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode(), phc)
    except (InvalidKey, UnicodeEncodeError):
        return False
    return True


class Passwords:
    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "passwords")
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        return await self._run(lambda: hash_password(password))

    async def holds(self, password: str, phc: str | None) -> bool:
        """Whether it is the one; `phc` None (no such user) takes as long and is never right."""
        return await self._run(lambda: self._check(password, phc))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check(self, password: str, phc: str | None) -> bool:
        if self._nobody is None:
            self._nobody = hash_password(os.urandom(16).hex())
        return password_holds(password, phc or self._nobody) and phc is not None

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= _WAITING:
            raise Busy("too many logins at once", hint="try again in a few seconds", details={"retry_after": 3})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1
