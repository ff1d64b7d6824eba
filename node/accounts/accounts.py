"""The accounts of this node, put together: files, logins, keys, second factors, and who a request comes from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.allowance import Windows
from node.accounts.api_keys import ApiKeys
from node.accounts.authenticate import Authenticator
from node.accounts.caller import FREE
from node.accounts.credentials import home_mark
from node.accounts.database import FILE, Database
from node.accounts.guessing import Guessing
from node.accounts.identities import Identities
from node.accounts.passwords import Passwords
from node.accounts.revoking import Revoking, Spreading
from node.accounts.second_factor import SecondFactor
from node.accounts.sessions import Sessions
from node.accounts.usage import UsageBook
from node.accounts.users import User, Users
from protocol.errors import Busy
from protocol.ids import PeerId
from protocol.signing import peer_of

REGISTRATIONS_PER_HOUR = 20
"""From one address."""


class Accounts:
    """Constructed without I/O; `open` after the swarm has started, since what was revoked is told to it again."""

    def __init__(self, folder: Path, home: Ed25519PrivateKey, swarm: Spreading, windows: Windows | None = None) -> None:
        self.home: PeerId = peer_of(home)
        self.mark = home_mark(self.home)
        self.database = Database(folder / FILE)
        self.passwords = Passwords()
        self.guessing = Guessing()
        self.windows = windows or Windows()
        self.revoking = Revoking(self.database, swarm)
        self.users = Users(self.database, self.passwords)
        self.identities = Identities(self.database)
        self.keys = ApiKeys(home, self.database, self.revoking)
        self.sessions = Sessions(home, self.database, self.users, self.passwords, self.guessing, self.revoking)
        self.second_factor = SecondFactor(self.database, self.users, self.guessing)
        self.usage = UsageBook(self.database, self.windows)
        self.authenticator = Authenticator(self.home, self.users, self.keys, self.identities, self.revoking, swarm, self.guessing)
        self._registered: dict[str, list[float]] = {}

    async def open(self) -> None:
        await self.database.open()
        await self.database.run(lambda db: db.execute("delete from families where expires < ?", (time.time(),)))
        for part in (self.users, self.identities, self.keys, self.revoking, self.usage):
            await part.load()

    async def close(self) -> None:
        await self.usage.flush()
        self.passwords.close()
        self.database.close()

    async def register(self, name: str, email: str, password: str, address: str, tier: str = FREE) -> User:
        """`Busy` past 20 registrations an hour from one address."""
        self._check_rate(address)
        return await self.users.register(name, email, password, tier)

    def _check_rate(self, address: str) -> None:
        now = time.time()
        recent = [at for at in self._registered.pop(address, []) if at > now - 3_600]
        if len(recent) >= REGISTRATIONS_PER_HOUR:
            self._registered[address] = recent
            raise Busy("too many registrations from this address", details={"retry_after": int(recent[0] + 3_600 - now) + 1})
        self._registered[address] = [*recent, now]
        while len(self._registered) > 16_384:
            self._registered.pop(next(iter(self._registered)))

    async def delete(self, user: User) -> None:
        """Keys and logins are revoked first, so that a crash between leaves an account nobody can use, never a key without one."""
        await self.keys.revoke_all(user.id)
        await self.sessions.logout_all(user.id)
        await self.usage.forget(user.public.hex())
        await self.users.delete(user.id)

    async def export(self, user: User) -> dict[str, Any]:
        """Everything kept about a user, the account's private key included: it is his."""
        return {
            "user_id": user.id,
            "username": user.full_name,
            "email": user.email,
            "created_at": user.created,
            "tier": user.tier,
            "totp": user.totp_on,
            "account_public_key": user.public.hex(),
            "account_private_key": (await self.users.seed(user.id)).hex(),
            "home": self.home,
            "keys": [
                {"id": key.label, "name": key.name, "scopes": sorted(key.scopes), "created_at": key.created}
                for key in self.keys.ring.of_user(user.id)
            ],
            "usage": await self.usage.days(user.public.hex(), "0000", "9999"),
        }
