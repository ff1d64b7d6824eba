"""Logins: a password becomes an access token of an hour and a refresh token that is good once.

A refresh token names its family (one login) and carries a secret of which the file has the hash. Using it gives the next; an older
one of the family, whoever shows it, means that two have the same login: the family ends. An access token is a link signed by this
home for this home, its id the family's, so that ending the family refuses it too.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.api_keys import SELF_SERVICE
from node.accounts.credentials import home_mark, refresh_parts, refresh_text
from node.accounts.database import Database
from node.accounts.guessing import Guessing
from node.accounts.passwords import Passwords
from node.accounts.revoking import Revoking
from node.accounts.totp import matching, recovery_hash
from node.accounts.users import User, Users
from protocol import limits
from protocol.errors import Misdirected, Unauthorized
from protocol.ids import PeerId, digest
from protocol.signing import peer_of
from protocol.tokens import Link, seal_link, token_text

ACCESS = limits.TOKEN_LIFETIME
FAMILY_LIFETIME = 30 * 86_400


class CodeWanted(Unauthorized):
    """The password is right; the account also wants a one-time code."""

    code = "totp_required"


@dataclass(frozen=True)
class Tokens:
    user: User
    access: str
    refresh: str
    expires_in: int = ACCESS


class Sessions:
    def __init__(
        self,
        home: Ed25519PrivateKey,
        database: Database,
        users: Users,
        passwords: Passwords,
        guessing: Guessing,
        revoking: Revoking,
        rng: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._home_key = home
        self._home: PeerId = peer_of(home)
        self._database = database
        self._users = users
        self._passwords = passwords
        self._guessing = guessing
        self._revoking = revoking
        self._rng = rng

    async def login(self, name: str, password: str, code: str | None, address: str) -> Tokens:
        """`Unauthorized` says nothing about which of name and password was wrong; `CodeWanted` where a code is needed too."""
        user = self._users.named(name)
        await self._check(user, name.partition("@")[0].lower()[:64], password, code, address)
        assert user is not None
        family, secret = self._rng(16), self._rng(32)
        row = (family.hex(), user.id, digest(secret), time.time(), time.time() + FAMILY_LIFETIME)
        await self._database.run(lambda db: db.execute("insert into families values (?, ?, ?, ?, ?)", row))
        return self._tokens(user, family, secret)

    async def confirm(self, user: User, password: str, code: str | None, address: str) -> None:
        """The same check for what a token alone may not do."""
        await self._check(user, user.name.lower(), password, code, address)

    async def _check(self, user: User | None, name: str, password: str, code: str | None, address: str) -> None:
        pair, place, account = f"{name} {address}", f"login {address}", f"account {name}"
        self._guessing.check(time.time(), pair, place, account)
        right = await self._passwords.holds(password, user.password if user else None)
        if right and user is not None and user.totp_on and code is None:
            raise CodeWanted("this account wants a one-time code", hint="send totp_code, from the app or a recovery code")
        if not right or user is None or not await self._code_holds(user, code):
            now = time.time()
            self._guessing.missed(now, pair)
            self._guessing.missed(now, place, free=20)
            self._guessing.missed(now, account, free=50)
            raise Unauthorized(
                "username, password or code is wrong",
                hint="an account of another node logs in there: name@HOME, its home's PeerID, is answered with the home's address",
            )
        self._guessing.right(pair)

    async def _code_holds(self, user: User, code: str | None) -> bool:
        if not user.totp_on:
            return True
        assert user.totp is not None
        counter = matching(user.totp, code or "", time.time(), user.totp_last)
        if counter is not None:
            return await self._use_counter(user, counter)
        return await self._use_recovery(user, code or "")

    async def _use_counter(self, user: User, counter: int) -> bool:
        """A code is good once, also when two arrive together."""

        def work(db: sqlite3.Connection) -> int:
            return db.execute("update users set totp_last = ? where id = ? and totp_last < ?", (counter, user.id, counter)).rowcount

        used = await self._database.run(work)
        await self._users.change(user.id, totp_on=1)
        return used == 1

    async def _use_recovery(self, user: User, code: str) -> bool:
        values = (user.id, recovery_hash(code))
        return await self._database.run(lambda db: db.execute("delete from recovery where user = ? and hash = ?", values).rowcount) == 1

    async def refresh(self, text: str, address: str) -> Tokens:
        """The next pair. Showing one twice ends the login it belongs to."""
        self._guessing.check(time.time(), f"refresh {address}")
        mark, family, secret = refresh_parts(text)
        if mark != home_mark(self._home):
            raise Misdirected("the refresh token belongs to another node", details={"mark": mark.hex()})
        fresh = self._rng(32)
        user_id = await self._database.run(lambda db: _rotate(db, family.hex(), digest(secret), digest(fresh), time.time()))
        user = self._users.get(user_id) if user_id else None
        if user is None:
            if user_id == "":
                await self._end(family)
            self._guessing.missed(time.time(), f"refresh {address}", free=20)
            raise Unauthorized("the refresh token is no longer good", hint="log in again")
        return self._tokens(user, family, fresh)

    async def logout(self, family: bytes) -> None:
        await self._database.run(lambda db: db.execute("delete from families where id = ?", (family.hex(),)))
        await self._end(family)

    async def logout_all(self, user: str) -> None:
        for row in await self._database.rows("select id from families where user = ?", user):
            await self.logout(bytes.fromhex(row["id"]))

    async def _end(self, family: bytes) -> None:
        await self._revoking.revoke([family], ACCESS)

    def _tokens(self, user: User, family: bytes, secret: bytes) -> Tokens:
        return Tokens(
            user, self.token(user, family, self._home, sorted(SELF_SERVICE), None, ACCESS), refresh_text(self._home, family, secret)
        )

    def token(self, user: User, family: bytes, audience: str, scopes: list[str], models: list[str] | None, lifetime: int) -> str:
        """A token by this home's own signature, for itself or for another node."""
        now = int(time.time())
        link = Link(
            id=family,
            account=user.public,
            scopes=scopes,
            issued=now,
            expires=now + min(lifetime, ACCESS),
            audience=audience,
            models=models,
            name=user.full_name,
            tier=user.tier,
        )
        return token_text([seal_link(self._home_key, link)])


def _rotate(db: sqlite3.Connection, family: str, shown: bytes, fresh: bytes, now: float) -> str | None:
    """The user's id; "" where the family was ended for reuse, None where there is none (any more)."""
    row = db.execute("select user, hash, expires from families where id = ?", (family,)).fetchone()
    if row is None or row["expires"] < now:
        return None
    if bytes(row["hash"]) != shown:
        db.execute("delete from families where id = ?", (family,))
        return ""
    db.execute("update families set hash = ? where id = ?", (fresh, family))
    return str(row["user"])
