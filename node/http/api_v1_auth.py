"""`/api/v1/auth`: registration, logins, second factor, keys, tokens for other nodes.

Every change is written into the journal before it is answered. What a stolen token must not be enough for (a second factor, the end of the
account) asks for the password again.
"""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

from aiohttp import web

from node.accounts.api_keys import KeyRequest, check_scopes
from node.accounts.caller import Caller, address_subject
from node.accounts.keyring import ApiKey
from node.accounts.sessions import Tokens
from node.accounts.users import User
from node.http import account_schemas as schemas
from node.http.access import Access, access_of, client_address, with_home
from node.http.api_v1 import success
from node.http.bodies import read_json, read_query
from node.http.context import SETTINGS
from node.http.elsewhere import elsewhere
from node.http.metering import caller
from node.http.schemas import NoQuery
from protocol import limits
from protocol.errors import BadInput, Forbidden, Misdirected, Unauthorized
from protocol.ids import public_from_peer
from protocol.tokens import EVERYWHERE

FIRST_SCOPES = ("account", "inference", "models:read", "models:write")


def created(data: object) -> web.Response:
    reply = success(data)
    reply.set_status(201)
    return reply


def own_address(request: web.Request) -> str:
    return address_subject(client_address(request, request.app[SETTINGS]))


def own_user(access: Access) -> tuple[Caller, User]:
    """The caller as a user of this home; `Forbidden` for the owner's keys, `Misdirected` for identities of other homes."""
    who = caller()
    if who.user is None:
        if who.account is None:
            raise Forbidden("the owner's keys belong to no account", hint="mf-node key lists and revokes them")
        raise Misdirected("your account lies at another node", hint="ask its home")
    user = access.accounts.users.get(who.user)
    if user is None:
        raise Unauthorized("the account is gone")
    return who, user


def at(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def key_view(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.label,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else list(key.models),
        "audience": key.audience,
        "created_at": at(key.created),
        "expires_at": at(key.expires),
    }


async def register(request: web.Request) -> web.StreamResponse:
    access = access_of(request)
    body = await read_json(request, schemas.RegisterRequest, request.app[SETTINGS])
    user = await access.accounts.register(body.username, body.email, body.password, own_address(request))
    key, text = await access.accounts.keys.make(user, KeyRequest("first key", FIRST_SCOPES))
    await access.journal.add("registered", user=user.full_name, user_id=user.id, key=key.label, address=own_address(request))
    return created(schemas.Registered(user_id=user.id, username=user.full_name, api_key=text, key_id=key.label, home=access.accounts.home))


def _logged_in(made: Tokens) -> schemas.LoggedIn:
    return schemas.LoggedIn(access_token=made.access, refresh_token=made.refresh, expires_in=made.expires_in, user_id=made.user.id)


async def login(request: web.Request) -> web.StreamResponse:
    access = access_of(request)
    body = await read_json(request, schemas.LoginRequest, request.app[SETTINGS])
    name = body.username.removesuffix(f"@{access.accounts.home}")
    if access.accounts.users.named(name) is None:
        elsewhere(access, name, own_address(request))
    try:
        made = await access.accounts.sessions.login(name, body.password, body.totp_code, own_address(request))
    except Unauthorized as error:
        await access.journal.add("login_failed", user=_named(access, name), code=error.code, address=own_address(request))
        raise
    await access.journal.add("login", user=made.user.full_name, address=own_address(request))
    return success(_logged_in(made))


def _named(access: Access, name: str) -> str:
    """A user's name as the journal has it; what somebody else typed there may be a password."""
    user = access.accounts.users.named(name)
    return user.full_name if user else "unknown"


async def refresh(request: web.Request) -> web.StreamResponse:
    access = access_of(request)
    body = await read_json(request, schemas.RefreshRequest, request.app[SETTINGS])
    try:
        return success(_logged_in(await access.accounts.sessions.refresh(body.refresh_token, own_address(request))))
    except Misdirected as error:
        raise with_home(error, access) from None


async def logout(request: web.Request) -> web.StreamResponse:
    """Ends the login that the access token came from."""
    access = access_of(request)
    who, user = own_user(access)
    if who.kind != "token" or who.key is None or access.accounts.keys.ring.get(who.key) is not None:
        raise BadInput("only a login can be ended", hint="revoke a key by DELETE /api/v1/auth/keys/{id}")
    await access.accounts.sessions.logout(who.key)
    await access.journal.add("logout", user=user.full_name)
    return success(schemas.Done(done="logged out"))


async def begin_totp(request: web.Request) -> web.StreamResponse:
    access = access_of(request)
    _, user = own_user(access)
    body = await read_json(request, schemas.ConfirmRequest, request.app[SETTINGS])
    await access.accounts.sessions.confirm(user, body.password, body.totp_code, own_address(request))
    made = await access.accounts.second_factor.begin(user, "ModelFloat")
    return success(schemas.Enrolled(secret=made.secret, otpauth_uri=made.uri))


async def confirm_totp(request: web.Request) -> web.StreamResponse:
    access = access_of(request)
    _, user = own_user(access)
    body = await read_json(request, schemas.CodeRequest, request.app[SETTINGS])
    codes = await access.accounts.second_factor.confirm(user, body.totp_code)
    await access.journal.add("totp_on", user=user.full_name)
    return success(schemas.RecoveryCodes(recovery_codes=codes))


async def end_totp(request: web.Request) -> web.StreamResponse:
    access = access_of(request)
    _, user = own_user(access)
    body = await read_json(request, schemas.ConfirmRequest, request.app[SETTINGS])
    await access.accounts.sessions.confirm(user, body.password, body.totp_code, own_address(request))
    await access.accounts.second_factor.off(user)
    await access.journal.add("totp_off", user=user.full_name)
    return success(schemas.Done(done="one-time codes are off"))


async def list_keys(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    access = access_of(request)
    _, user = own_user(access)
    return success({"keys": [key_view(key) for key in access.accounts.keys.ring.of_user(user.id)]})


async def make_key(request: web.Request) -> web.StreamResponse:
    """No more than the credential that asks for it: a key of few scopes can't make itself a wider one."""
    access = access_of(request)
    who, user = own_user(access)
    body = await read_json(request, schemas.KeyBody, request.app[SETTINGS])
    check_scopes(body.scopes, who.scopes)
    _check_models(who, body.models)
    expires = None if body.expires_in is None else time.time() + body.expires_in
    _check_bounds(who, expires, body.audience)
    key, text = await access.accounts.keys.make(user, KeyRequest(body.name, body.scopes, body.models, body.audience, expires))
    await access.journal.add("key_made", user=user.full_name, key=key.label, scopes=sorted(key.scopes), audience=key.audience)
    swarm = access.accounts.keys.swarm_token(key, user, time.time()) if key.audience == EVERYWHERE else None
    return created({**key_view(key), "api_key": text, "swarm_token": swarm})


def _check_models(who: Caller, wanted: list[str] | None) -> None:
    if who.models is not None and (wanted is None or not set(wanted) <= who.models):
        raise Forbidden("the credential is limited to some models: so is what it makes", hint="give models, from its own list")


def _check_bounds(who: Caller, expires: float | None, audience: str | None) -> None:
    if who.until is not None and (expires is None or expires > who.until):
        raise Forbidden("the credential ends before the key it asks for would", hint="give a shorter expires_in, or log in")
    if who.audience is not None and audience != who.audience:
        raise Forbidden(f"the credential is for {who.audience} alone: so is what it makes", hint="give that audience, or log in")


async def revoke_key(request: web.Request) -> web.StreamResponse:
    access = access_of(request)
    _, user = own_user(access)
    key = access.accounts.keys.find(user.id, request.match_info["key"])
    await access.accounts.keys.revoke(key)
    await access.journal.add("key_revoked", user=user.full_name, key=key.label)
    return success(schemas.Done(done=f"{key.label} is revoked"))


async def key_link(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    access = access_of(request)
    who, user = own_user(access)
    key = access.accounts.keys.find(user.id, request.match_info["key"])
    if not key.scopes <= who.scopes:
        raise Forbidden("that key may do more than the credential that asks for its link")
    link = access.accounts.keys.word_for(key, user, time.time())
    return success(schemas.KeyLink(link=base64.b64encode(link).decode(), expires_in=limits.KEY_LINK_LIFETIME))


async def make_token(request: web.Request) -> web.StreamResponse:
    """The caller's credential narrowed to one node: what is sent there instead of the key."""
    access = access_of(request)
    who, user = own_user(access)
    body = await read_json(request, schemas.TokenBody, request.app[SETTINGS])
    public_from_peer(body.audience)
    check_scopes(body.scopes, who.scopes)
    models = body.models if body.models is not None else (None if who.models is None else sorted(who.models))
    _check_models(who, models)
    key = access.accounts.keys.ring.get(who.key or b"")
    if key is not None and key.audience not in (None, EVERYWHERE, body.audience):
        raise Forbidden(f"the key is for {key.audience} alone")
    lifetime = body.expires_in if key is None or key.expires is None else min(body.expires_in, int(key.expires - time.time()))
    if lifetime < 1:
        raise Unauthorized("the key is about to expire")
    text = access.accounts.sessions.token(user, who.key or b"", body.audience, sorted(body.scopes), models, lifetime)
    return success(schemas.MadeToken(token=text, expires_in=lifetime, audience=body.audience))


ROUTES = [
    web.post("/api/v1/auth/register", register),
    web.post("/api/v1/auth/login", login),
    web.post("/api/v1/auth/refresh", refresh),
    web.post("/api/v1/auth/logout", logout),
    web.post("/api/v1/auth/totp", begin_totp),
    web.post("/api/v1/auth/totp/confirm", confirm_totp),
    web.delete("/api/v1/auth/totp", end_totp),
    web.get("/api/v1/auth/keys", list_keys),
    web.post("/api/v1/auth/keys", make_key),
    web.delete("/api/v1/auth/keys/{key}", revoke_key),
    web.get("/api/v1/auth/keys/{key}/link", key_link),
    web.post("/api/v1/auth/tokens", make_token),
]
