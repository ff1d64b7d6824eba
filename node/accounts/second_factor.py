"""Turning one-time codes on and off for an account."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.accounts.database import Database
from node.accounts.guessing import Guessing
from node.accounts.totp import matching, new_recovery_codes, new_secret, recovery_hash, uri
from node.accounts.users import User, Users
from protocol.errors import Conflict, Unauthorized


@dataclass(frozen=True)
class Enrolment:
    secret: str
    uri: str


class SecondFactor:
    def __init__(self, database: Database, users: Users, guessing: Guessing, rng: Callable[[int], bytes] = os.urandom) -> None:
        self._database = database
        self._users = users
        self._guessing = guessing
        self._rng = rng

    async def begin(self, user: User, issuer: str) -> Enrolment:
        """A new secret, not yet asked for: the app must first show that it has it."""
        if user.totp_on:
            raise Conflict("one-time codes are on already", hint="turn them off first")
        secret = new_secret(self._rng)
        await self._users.change(user.id, totp=secret)
        return Enrolment(secret, uri(secret, user.full_name, issuer))

    async def confirm(self, user: User, code: str) -> list[str]:
        """Turns them on; the recovery codes, shown once and kept as hashes."""
        if user.totp_on or user.totp is None:
            raise Conflict("there is nothing to confirm", hint="POST /api/v1/auth/totp first")
        who = f"totp {user.id}"
        self._guessing.check(time.time(), who)
        counter = matching(user.totp, code, time.time(), user.totp_last)
        if counter is None:
            self._guessing.missed(time.time(), who)
            raise Unauthorized("the code is wrong", hint="is the clock of the device right?")
        codes = new_recovery_codes(self._rng)
        rows = [(user.id, recovery_hash(one)) for one in codes]
        await self._database.run(lambda db: _replace(db, user.id, rows))
        await self._users.change(user.id, totp_on=1, totp_last=counter)
        return codes

    async def off(self, user: User) -> None:
        await self._database.run(lambda db: _replace(db, user.id, []))
        await self._users.change(user.id, totp_on=0, totp=None)


def _replace(db: sqlite3.Connection, user: str, rows: list[tuple[str, bytes]]) -> None:
    db.execute("delete from recovery where user = ?", (user,))
    db.executemany("insert into recovery values (?, ?)", rows)
