"""Who may call what: the credential, the scope that each path needs, the allowance. Made before any handler runs.

What a listener lets in without a credential was decided when it was set up ("open": inference and public lists), never by the caller's
address. Everything else needs one; a path that this table doesn't know needs the most common scope, not none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from node.accounts.accounts import Accounts
from node.accounts.authenticate import Shown
from node.accounts.caller import FREE, Caller, address_subject
from node.accounts.caller_rules import CallerRules
from node.accounts.journal import Journal
from node.http.errors import Handler
from node.http.metering import LOCAL, METER, Meter
from node.http.settings import HttpSettings
from node.stage_audit_report import StageAuditReport
from protocol.errors import DeadlineExceeded, MfError, Misdirected, TooLarge, Unauthorized
from protocol.tokens import PUBLIC_SCOPES

METER_KEY: web.RequestKey[Meter] = web.RequestKey("meter", Meter)


@dataclass(frozen=True)
class Access:
    """Accounts and what stands beside them. `home_of` says, of a mark or a PeerID, where that node's API answers; `rules` whom the owner
    lets in; `stage_audits` what was found of other nodes' stages, where any is looked at."""

    accounts: Accounts
    journal: Journal
    home_of: Callable[[bytes | str], dict[str, Any]]
    rules: CallerRules = field(default_factory=CallerRules)
    stage_audits: StageAuditReport | None = None

    async def close(self) -> None:
        await self.accounts.close()
        self.journal.close()


ACCESS: web.AppKey[Access] = web.AppKey("access", Access)

_ANY, _READ = r"[A-Z]+", r"GET|HEAD"
_RULES: tuple[tuple[re.Pattern[str], re.Pattern[str], str | None], ...] = tuple(
    (re.compile(method), re.compile(path, re.DOTALL), scope)
    for method, path, scope in (
        (_READ, r"/|/web/.*|/docs|/openapi\.json|/health", None),
        (_READ, r"/metrics", "models:read"),
        ("POST", r"/api/v1/auth/(register|login|refresh)", None),
        (_ANY, r"/api/v1/(auth|users)/.*", "account"),
        (_ANY, r"/api/v1/(audit|callers)(/.*)?", "admin"),
        (_READ, r"/api/v1/models/upload(/.*)?", "models:write"),
        (_READ, r"/(api/)?v1/models(/.*)?", "models:read"),
        (_READ, r"/api/v1/system/.*", "models:read"),
        ("POST", r"/api/v1/models/.+/inference(/batch)?", "inference"),
        (_ANY, r"/api/v1/models(/.*)?", "models:write"),
        (_ANY, r"/api/v1/(webhooks|teams)(/.*)?", "models:write"),
    )
)
_REGISTER = "/api/v1/auth/register"
_METERED = re.compile(r"/v1/.+|/api/v1/models/.+/inference(/batch)?|/api/v1/inference/compare|/api/(chat|generate|embed|embeddings)")


def route_of(request: web.Request) -> str | None:
    """The template of the route that was matched, None where none was: what a path spells can't be read in two ways then."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else None


def needed(method: str, path: str | None) -> str | None:
    """The scope that a request to this route needs; None for a public page, and for what isn't there."""
    if path is None:
        return None
    for methods, paths, scope in _RULES:
        if methods.fullmatch(method) and paths.fullmatch(path):
            return scope
    return "inference"


def metered(method: str, path: str | None) -> bool:
    return method == "POST" and path is not None and _METERED.fullmatch(path) is not None


def client_address(request: web.BaseRequest, settings: HttpSettings) -> str:
    """The address the allowance of unknown callers is counted under. Behind a proxy it is the last one that proxy added."""
    if settings.behind_proxy:
        told = ",".join(request.headers.getall("X-Forwarded-For", []))
        if told:
            return told.rpartition(",")[2].strip()[:64]
    return request.remote or "unknown"


def access_layer(access: Access | None, settings: HttpSettings) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        scope = needed(request.method, route)
        caller = await _caller(request, access, settings, scope)
        meter = _meter(caller, access, settings)
        request[METER_KEY] = meter
        token = METER.set(meter)
        try:
            if metered(request.method, route):
                meter.begin()
            else:
                meter.look()
            return await handler(request)
        finally:
            meter.leave()
            METER.reset(token)

    return check


def _meter(caller: Caller, access: Access | None, settings: HttpSettings) -> Meter:
    if access is None:
        return Meter(caller)
    return Meter(caller, None if settings.local else access.accounts.windows, access.accounts.usage)


async def _caller(request: web.Request, access: Access | None, settings: HttpSettings, scope: str | None) -> Caller:
    address = client_address(request, settings)
    if access is not None and not settings.local:
        access.rules.check(None, address)  # before its credential costs anything
    found = await _claimed(request, access, settings) if access is not None else None
    who = found or _nobody(request, settings, scope)
    if access is not None:
        free = settings.local or (scope is None and route_of(request) != _REGISTER)
        access.rules.check(who, "" if settings.local else address, free=free)
    if found is not None and scope is not None:
        found.need(scope)
    return who


async def _claimed(request: web.Request, access: Access, settings: HttpSettings) -> Caller | None:
    async def body() -> bytes:
        if request.content_length is not None and request.content_length > settings.max_body:
            raise TooLarge(f"a signed request's body has at most {settings.max_body} bytes", hint="send a token instead")
        try:
            async with asyncio.timeout(settings.body_timeout):
                return await request.read()
        except TimeoutError:
            raise DeadlineExceeded(f"the body didn't arrive within {settings.body_timeout:g} s") from None

    given = request.headers.getall(hdrs.AUTHORIZATION, [])
    if len(given) > 1:
        raise Unauthorized("more than one Authorization header")
    shown = Shown(given[0] if given else None, request.method, request.rel_url.raw_path_qs, client_address(request, settings), body)
    try:
        return await access.accounts.authenticator.caller(shown)
    except Misdirected as error:
        raise with_home(error, access) from None


def with_home(error: Misdirected, access: Access) -> Misdirected:
    """The same with the home's address, where this node knows it."""
    mark = bytes.fromhex(str(error.details.get("mark", "")))
    home = access.home_of(mark)
    where = f"; its home is {home['peer_id']}" if home.get("peer_id") else ""
    return Misdirected(error.message + where, hint=error.hint, details={"home": home})


def _nobody(request: web.Request, settings: HttpSettings, scope: str | None) -> Caller:
    """Without a credential: what this listener lets everybody do."""
    caller = LOCAL if settings.local else Caller("open", PUBLIC_SCOPES, address_subject(client_address(request, settings)), FREE)
    if scope is None or (settings.open and scope in caller.scopes):
        return caller
    raise Unauthorized(
        f"this needs a credential with the scope {scope}",
        hint="send Authorization: Bearer with an API key or a token; POST /api/v1/auth/register makes one",
    )


def rate_headers(request: web.Request) -> dict[str, str]:
    """X-RateLimit-* of this request's allowance; none where it has no limit."""
    meter = request.get(METER_KEY)
    standing = meter.standing if meter is not None else None
    if standing is None or standing.limit is None:
        return {}
    return {
        "X-RateLimit-Limit": str(standing.limit),
        "X-RateLimit-Remaining": str(standing.remaining),
        "X-RateLimit-Reset": str(standing.reset),
        "X-RateLimit-Window": str(standing.window),
    }


def access_of(request: web.Request) -> Access:
    """`MfError` where this application has no accounts."""
    found = request.app.get(ACCESS)
    if found is None:
        raise MfError("this node keeps no accounts")
    return found
