"""API keys of this home: made, listed, revoked, and the tokens made from them for other nodes."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.caller import UNLIMITED
from node.accounts.credentials import key_text
from node.accounts.database import Database
from node.accounts.keyring import ApiKey, Keyring
from node.accounts.revoking import Revoking
from node.accounts.users import User
from protocol import limits
from protocol.errors import BadInput, NotFound
from protocol.ids import digest, public_from_peer
from protocol.signing import peer_of
from protocol.tokens import EVERYWHERE, PUBLIC_SCOPES, SCOPES, Link, seal_link, token_text

MAX_KEYS = 64
"""Of one account."""
SELF_SERVICE = frozenset(SCOPES) - {"admin"}


@dataclass(frozen=True)
class KeyRequest:
    """`expires` Unix seconds; `audience` a PeerID that the key's tokens are limited to, or "*"."""

    name: str = "key"
    scopes: Sequence[str] = ("inference", "models:read")
    models: Sequence[str] | None = None
    audience: str | None = None
    expires: float | None = None


class ApiKeys:
    def __init__(self, home: Ed25519PrivateKey, database: Database, revoking: Revoking, rng: Callable[[int], bytes] = os.urandom) -> None:
        self._home_key = home
        self._home = peer_of(home)
        self._database = database
        self._revoking = revoking
        self._rng = rng
        self.ring = Keyring()

    async def load(self) -> None:
        for row in await self._database.rows("select * from keys"):
            self.ring.add(_key(row))

    async def make(self, user: User | None, request: KeyRequest) -> tuple[ApiKey, str]:
        """The key and its text, which is kept nowhere. `user` None: the owner's own."""
        check_scopes(request.scopes, SELF_SERVICE if user else frozenset(SCOPES))
        check_audience(request.audience, request.scopes)
        _check_limits(request)
        if len(self.ring.of_user(user.id if user else None)) >= MAX_KEYS:
            raise BadInput(f"an account has at most {MAX_KEYS} keys", hint="revoke one first")
        seed = self._rng(32)
        key = ApiKey(
            id=self._rng(16),
            user=user.id if user else None,
            hash=digest(seed),
            public=public_from_peer(peer_of(Ed25519PrivateKey.from_private_bytes(seed))),
            name=request.name,
            scopes=frozenset(request.scopes),
            models=None if request.models is None else tuple(request.models),
            audience=request.audience,
            created=time.time(),
            expires=request.expires,
        )
        await self._database.run(lambda db: _insert(db, key))
        self.ring.add(key)
        return key, key_text(self._home, seed)

    async def revoke(self, key: ApiKey) -> None:
        """Refused here from now on, at connected peers as soon as they hear it, elsewhere when its tokens expire."""
        self.ring.remove(key.id)
        await self._database.run(lambda db: db.execute("delete from keys where id = ?", (key.label,)))
        await self._revoking.revoke([key.id], limits.SWARM_KEY_LIFETIME if key.audience == EVERYWHERE else limits.KEY_LINK_LIFETIME)

    async def revoke_all(self, user: str) -> None:
        for key in self.ring.of_user(user):
            await self.revoke(key)

    def find(self, user: str | None, label: str) -> ApiKey:
        """A key of this user's by its id; `NotFound` for another's too."""
        found = next((key for key in self.ring.of_user(user) if key.label == label), None)
        if found is None:
            raise NotFound("you have no key of that id", hint="GET /api/v1/auth/keys lists them")
        return found

    def word_for(self, key: ApiKey, user: User | None, now: float) -> bytes:
        """The first link that names the key as its holder: with it, the client makes tokens for any node by itself for a day."""
        return seal_link(
            self._home_key,
            Link(
                id=key.id,
                account=user.public if user else public_from_peer(self._home),
                scopes=sorted(key.scopes),
                issued=int(now),
                expires=int(min(now + limits.KEY_LINK_LIFETIME, key.expires or now + limits.KEY_LINK_LIFETIME)),
                audience=key.audience,
                models=None if key.models is None else list(key.models),
                holder=key.public,
                name=user.full_name if user else None,
                tier=user.tier if user else UNLIMITED,
            ),
        )

    def swarm_token(self, key: ApiKey, user: User | None, now: float) -> str:
        """Of a swarm-wide key: what is sent to every node, as it is."""
        ends = now + limits.SWARM_KEY_LIFETIME
        link = Link(
            id=key.id,
            account=user.public if user else public_from_peer(self._home),
            scopes=sorted(key.scopes),
            issued=int(now),
            expires=int(min(ends, key.expires or ends)),
            audience=EVERYWHERE,
            models=None if key.models is None else list(key.models),
            name=user.full_name if user else None,
            tier=user.tier if user else UNLIMITED,
        )
        return token_text([seal_link(self._home_key, link)])


def check_scopes(scopes: Sequence[str], most: frozenset[str]) -> None:
    wrong = sorted(set(scopes) - most)
    if wrong or not scopes:
        said = ", ".join(one[:40] for one in wrong[:5]) or "none"
        raise BadInput(f"scopes {said} can't be given", hint=f"possible: {', '.join(sorted(most))}", details={"param": "scopes"})


def check_audience(audience: str | None, scopes: Sequence[str]) -> None:
    if audience is None:
        return
    if audience != EVERYWHERE:
        public_from_peer(audience)
    elif not set(scopes) <= PUBLIC_SCOPES:
        raise BadInput(
            f"a swarm-wide key is for public inference: scopes {', '.join(sorted(PUBLIC_SCOPES))}", details={"param": "audience"}
        )


def _check_limits(request: KeyRequest) -> None:
    models = request.models or ()
    if len(models) > limits.MAX_TOKEN_MODELS:
        raise BadInput(f"a key names at most {limits.MAX_TOKEN_MODELS} models", details={"param": "models"})
    if request.expires is not None and request.expires <= time.time():
        raise BadInput("the key would have expired already", details={"param": "expires_in"})


def _insert(db: sqlite3.Connection, key: ApiKey) -> None:
    scopes, models = " ".join(sorted(key.scopes)), None if key.models is None else json.dumps(key.models)
    row = (key.label, key.user, key.hash, key.public, key.name, scopes, models, key.audience, key.created, key.expires)
    db.execute("insert into keys values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def _key(row: sqlite3.Row) -> ApiKey:
    return ApiKey(
        id=bytes.fromhex(row["id"].removeprefix("key_")),
        user=row["user"],
        hash=bytes(row["hash"]),
        public=bytes(row["public"]),
        name=row["name"],
        scopes=frozenset(row["scopes"].split()),
        models=None if row["models"] is None else tuple(json.loads(row["models"])),
        audience=row["audience"],
        created=row["created"],
        expires=row["expires"],
    )
