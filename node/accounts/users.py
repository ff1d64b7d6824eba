"""Users of this home: registration, tier, export, deletion. Rows in, rows out; the file is asked through `Database`."""

from __future__ import annotations

import base64
import os
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.caller import FREE, TIERS
from node.accounts.database import Database
from node.accounts.passwords import Passwords, check_password
from protocol.errors import BadInput, Conflict, NotFound
from protocol.ids import fingerprint, public_from_peer
from protocol.signing import peer_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,31}\Z")
_EMAIL = re.compile(r"[^@\s\x00-\x1f<>\"']{1,64}@[A-Za-z0-9.-]{1,190}\Z")


@dataclass(frozen=True)
class User:
    """`name` is the one chosen; `full_name` with the fingerprint of the account's key, unmistakable in every swarm."""

    id: str
    name: str
    email: str
    password: str
    public: bytes
    tier: str
    created: float
    totp: str | None
    totp_on: bool
    totp_last: int

    @property
    def full_name(self) -> str:
        return f"{self.name}@{fingerprint(self.public)}"


def _user(row: sqlite3.Row) -> User:
    values = {name: row[name] for name in User.__dataclass_fields__}
    return User(**{**values, "public": bytes(values["public"]), "totp_on": bool(values["totp_on"])})


class Users:
    """Also knows, in memory, the id, name and tier of each: they are asked for at every request."""

    def __init__(self, database: Database, passwords: Passwords, rng: Callable[[int], bytes] = os.urandom) -> None:
        self._database = database
        self._passwords = passwords
        self._rng = rng
        self._known: dict[str, User] = {}
        self._names: dict[str, str] = {}
        self._publics: dict[bytes, str] = {}

    async def load(self) -> None:
        for row in await self._database.rows("select * from users"):
            self._keep(_user(row))

    def _keep(self, user: User) -> None:
        self._known[user.id] = user
        self._names[user.name.lower()] = self._publics[user.public] = user.id

    def get(self, user: str) -> User | None:
        return self._known.get(user)

    def by_public(self, public: bytes) -> User | None:
        return self._known.get(self._publics.get(public, ""))

    def named(self, name: str) -> User | None:
        """By the name alone or with the fingerprint, which must then be right."""
        bare, _, mark = name.partition("@")
        found = self._known.get(self._names.get(bare.lower(), ""))
        return found if found is not None and mark in ("", fingerprint(found.public)) else None

    def all(self) -> list[User]:
        return sorted(self._known.values(), key=lambda user: user.created)

    async def register(self, name: str, email: str, password: str, tier: str = FREE) -> User:
        """A new account with a key of its own. `Conflict` where the name is taken; the e-mail isn't compared: it would tell who is here."""
        if not _NAME.match(name):
            raise BadInput("a username has 2 to 32 letters, digits, dots, dashes and underscores", details={"param": "username"})
        if not _EMAIL.match(email):
            raise BadInput("that isn't an e-mail address", details={"param": "email"})
        check_password(password)
        if self.named(name) is not None:
            raise Conflict(f"the username {name} is taken here", hint="choose another", details={"param": "username"})
        phc = await self._passwords.hash(password)
        seed = self._rng(32)
        public = public_from_peer(peer_of(Ed25519PrivateKey.from_private_bytes(seed)))
        made = f"usr_{base64.b32encode(self._rng(10)).decode().lower()}"
        user = User(made, name, email, phc, public, tier, time.time(), None, False, -1)
        try:
            await self._database.run(lambda db: _insert(db, user, seed))
        except sqlite3.IntegrityError:
            raise Conflict(f"the username {name} is taken here", hint="choose another", details={"param": "username"}) from None
        self._keep(user)
        return user

    async def change(self, user: str, **fields: Any) -> User:
        """Sets columns of a user, durably."""
        names = ", ".join(f"{name} = ?" for name in fields)

        def work(db: sqlite3.Connection) -> User:
            db.execute(f"update users set {names} where id = ?", (*fields.values(), user))
            row = db.execute("select * from users where id = ?", (user,)).fetchone()
            if row is None:
                raise NotFound("no such user")
            return _user(row)

        changed = await self._database.run(work)
        self._keep(changed)
        return changed

    async def set_tier(self, user: str, tier: str) -> User:
        return await self.change(user, tier=check_tier(tier))

    async def delete(self, user: str) -> None:
        """The account and all that names it, for good; its key can't be made again."""
        await self._database.run(lambda db: db.execute("delete from users where id = ?", (user,)))
        gone = self._known.pop(user, None)
        if gone is not None:
            del self._names[gone.name.lower()], self._publics[gone.public]

    async def seed(self, user: str) -> bytes:
        """The account's private key."""
        rows = await self._database.rows("select seed from users where id = ?", user)
        return bytes(rows[0]["seed"])


def check_tier(tier: str) -> str:
    if tier not in TIERS:
        raise BadInput(f"{tier[:40]!r} is no tier", hint=f"tiers are {', '.join(TIERS)}", details={"param": "tier"})
    return tier


def _insert(db: sqlite3.Connection, user: User, seed: bytes) -> None:
    db.execute(
        "insert into users (id, name, email, password, seed, public, tier, created) values (?, ?, ?, ?, ?, ?, ?, ?)",
        (user.id, user.name, user.email, user.password, seed, user.public, user.tier, user.created),
    )
