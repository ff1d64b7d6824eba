"""From a request's credential to a `Caller`: the one place where it is decided who that is.

    none                  the listener decides: open (inference and public lists) or keyed
    Bearer mf_live_…      an API key, at its home alone
    Bearer mf_tok_…       a token: of a login here, or narrowed to this node by any home
    MF1 …                 a request signed by an API key

An identity of another home may do public inference here; what more, the owner of this node says by giving it a tier. What its home says of
its tier is heard only from homes this node trusts: else anybody would vouch for himself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from node.accounts.api_keys import ApiKeys
from node.accounts.caller import FREE, UNLIMITED, Caller, address_subject, subject_of
from node.accounts.credentials import KEY_PREFIX, home_mark, key_parts
from node.accounts.guessing import Guessing
from node.accounts.identities import Identities
from node.accounts.keyring import ApiKey
from node.accounts.replays import Replays
from node.accounts.revoking import Revoking, Spreading
from node.accounts.users import User, Users
from protocol.errors import Misdirected, Unauthorized
from protocol.ids import PeerId, digest
from protocol.tokens import (
    PUBLIC_SCOPES,
    TOKEN_PREFIX,
    Claims,
    SignedRequest,
    check_signed_request,
    follow,
    open_token,
    parse_signed_request,
)

_CHECKED = 4_096
_MISSES = 30
"""Wrong keys from one address before it has to wait: they can't be guessed, this keeps log and processor."""


@dataclass(frozen=True)
class Shown:
    """What of a request speaks for its caller. `target` path and query as sent; `body` reads it whole, for a signed one."""

    authorization: str | None
    method: str
    target: str
    address: str
    body: Callable[[], Awaitable[bytes]]


class Authenticator:
    def __init__(
        self,
        me: PeerId,
        users: Users,
        keys: ApiKeys,
        identities: Identities,
        revoking: Revoking,
        swarm: Spreading,
        guessing: Guessing,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._me = me
        self._mark = home_mark(me)
        self._users = users
        self._keys = keys
        self._identities = identities
        self._revoking = revoking
        self._swarm = swarm
        self._guessing = guessing
        self._replays = Replays()
        self._checked: OrderedDict[bytes, Claims] = OrderedDict()
        self._now = now

    async def caller(self, shown: Shown) -> Caller | None:
        """None where no credential of ours is shown; `Unauthorized`, `Misdirected` or `Busy` where one is and doesn't hold."""
        scheme, _, value = (shown.authorization or "").strip().partition(" ")
        kind, value = scheme.lower(), value.strip()
        ours = kind == "mf1" or (kind == "bearer" and value.startswith(("mf_", KEY_PREFIX, TOKEN_PREFIX)))
        if not ours:
            return None
        who = f"key {address_subject(shown.address)}"
        self._guessing.check(self._now(), who)
        try:
            if kind == "mf1":
                return await self._signed(parse_signed_request(value), shown)
            return self._key(value, shown.address) if value.startswith(KEY_PREFIX) else self._token(value, shown.address)
        except Unauthorized:
            self._guessing.missed(self._now(), who, free=_MISSES)
            raise

    def _key(self, text: str, address: str) -> Caller:
        mark, seed = key_parts(text)
        if mark != self._mark:
            raise Misdirected(
                "this API key belongs to another node: nothing was done with it",
                hint="narrow it to this node at its home",
                details={"mark": mark.hex()},
            )
        key = self._keys.ring.by_seed(seed)
        if key is None:
            raise Unauthorized("the API key is unknown or was revoked", hint="GET /api/v1/auth/keys lists yours")
        return self._of_key(key, "key", address)

    def _of_key(self, key: ApiKey, kind: str, address: str) -> Caller:
        if key.expires is not None and key.expires <= self._now():
            raise Unauthorized("the API key has expired", hint="make a new one")
        models = None if key.models is None else frozenset(key.models)
        if key.user is None:
            return Caller(kind, key.scopes, "owner", UNLIMITED, key=key.id, name="owner", models=models, claimed=True)
        user = self._users.get(key.user)
        if user is None:
            raise Unauthorized("the API key's account is gone")
        bounds = {"until": key.expires, "audience": key.audience, "home": self._me}
        return _of_user(kind, key.scopes, user, address, models=models, key=key.id, **bounds)

    def _token(self, text: str, address: str) -> Caller:
        name = digest(text.encode())
        claims = self._checked.get(name)
        if claims is None:
            claims = open_token(text, self._me, self._now())
            self._checked[name] = claims
            while len(self._checked) > _CHECKED:
                self._checked.popitem(last=False)
        elif claims.expires <= self._now():
            del self._checked[name]
            raise Unauthorized("the token has expired", hint="make a new one from the key, or ask its home")
        return self._of_claims(claims, "token", address)

    def _of_claims(self, claims: Claims, kind: str, address: str) -> Caller:
        if claims.home == self._me:
            return self._at_home(claims, kind, address)
        if self._swarm.revoked(claims.home, claims.ids, claims.issued):
            raise Unauthorized("the token was revoked by its home")
        self._identities.seen(claims)
        tier = self._identities.tier(claims.account) or FREE
        if tier == FREE and claims.tier and self._swarm.trusted(claims.home):
            tier = self._identities.believed(claims.tier)
        more = frozenset({"models:write"}) if tier not in (FREE, "known") else frozenset()
        scopes = claims.scopes & (PUBLIC_SCOPES | more)
        subject = subject_of(claims.account, tier, address)
        return Caller(kind, scopes, subject, tier, claims.account, None, claims.name, claims.models, claims.ids[0], True, home=claims.home)

    def _at_home(self, claims: Claims, kind: str, address: str) -> Caller:
        if self._revoking.revoked(claims.ids):
            raise Unauthorized("the token was revoked", hint="log in again, or use another key")
        user = self._users.by_public(claims.account)
        key = self._keys.ring.get(claims.ids[0])
        if user is None and (key is None or key.user is not None):
            raise Unauthorized("the token's account is gone")
        scopes = claims.scopes & key.scopes if key is not None else claims.scopes
        if user is None:
            return Caller(kind, scopes, "owner", UNLIMITED, name="owner", models=claims.models, key=claims.ids[0], claimed=True)
        bounds = {} if key is None else {"until": claims.expires, "audience": key.audience}
        return _of_user(kind, scopes, user, address, models=claims.models, key=claims.ids[0], home=self._me, **bounds)

    async def _signed(self, request: SignedRequest, shown: Shown) -> Caller:
        signer = self._signer(request)  # before the body: a stranger's isn't waited for
        body = await shown.body()
        now = self._now()
        check_signed_request(request, self._me, shown.method, shown.target, body, now)
        if isinstance(signer, Claims):
            caller = self._of_claims(signer, "signed", shown.address)
        elif self._keys.ring.by_public(request.key) is signer:
            caller = self._of_key(signer, "signed", shown.address)
        else:
            raise Unauthorized("the signed request's key was revoked")
        self._replays.enter(request.key, request.nonce, request.time, now)
        return caller

    def _signer(self, request: SignedRequest) -> ApiKey | Claims:
        """Whose key it is, here or by its links; whether the signature holds is seen when the body is there."""
        key = self._keys.ring.by_public(request.key)
        if key is not None:
            return key
        if not request.links:
            raise Unauthorized("the signed request's key is unknown or was revoked", hint="away from its home, send the home's link for it")
        claims, last = follow(request.links, self._now())
        if last.holder != request.key or last.audience not in (None, self._me):
            raise Unauthorized("the signed request's link is for another key or node")
        if claims.home == self._me:
            raise Unauthorized("the signed request's key was revoked")
        return claims


def _of_user(kind: str, scopes: frozenset[str], user: User, address: str, **limits: Any) -> Caller:
    """Of an account that is at home here; `limits` are those of the credential."""
    subject = subject_of(user.public, user.tier, address)
    return Caller(kind, scopes, subject, user.tier, account=user.public, user=user.id, name=user.full_name, claimed=True, **limits)
