"""Who may call at all: the checks made before a request reaches any handler.

The listener on loopback trusts whoever runs programs on this machine, but a browser on it also runs other
people's pages. Three doors are shut on those: a name of theirs that resolves to this address (DNS rebinding) fails on
`Host`; a request their page sends is marked by `Origin` or `Sec-Fetch-Site`; and the bodies a page may send without asking
first (form, multipart, text/plain) aren't taken. An allowed origin is answered with the CORS headers it needs.

Rejected: a token for loopback callers (curl and every OpenAI client would need it), and judging by the peer's address
(a browser's requests come from loopback too).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from node.http.errors import Handler
from node.http.settings import HttpSettings
from protocol.errors import BadInput, Forbidden, TooLarge

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFELISTED = frozenset({"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})
"""Types (and none) that any web page may post anywhere without a preflight."""
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_RATES = tuple(f"X-RateLimit-{name}" for name in ("Limit", "Remaining", "Reset", "Window"))
_EXPOSED = ("X-MF-Route", "X-Request-Id", "Server-Timing", "Link", "Location", "Retry-After", *_RATES)
_ALLOWED = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "content-type, authorization, accept, idempotency-key, content-range, x-request-id",
    "Access-Control-Max-Age": "600",
}


def host_name(header: str) -> str | None:
    """`Host` without its port and brackets, lowercase; None where it isn't a host at all."""
    try:
        parts = urlsplit(f"//{header}")
        port_ok = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        return None
    plain = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    return parts.hostname if plain and port_ok else None


def _own_address(request: web.Request) -> str | None:
    """The address this connection came in at: a page can't rebind a literal address."""
    sockname = request.transport.get_extra_info("sockname") if request.transport else None
    return str(sockname[0]) if isinstance(sockname, tuple) else None


def _same_address(left: str, right: str | None) -> bool:
    try:
        return right is not None and ipaddress.ip_address(left) == ipaddress.ip_address(right)
    except ValueError:
        return False


def check_host(request: web.Request, settings: HttpSettings) -> None:
    given = request.headers.getall(hdrs.HOST, [])
    name = host_name(given[0]) if len(given) == 1 else None
    known = LOOPBACK.union(host.lower() for host in settings.hosts)
    if name is None or not (name in known or _same_address(name, _own_address(request))):
        raise Forbidden("the Host header names none of this node's addresses", hint="add the name to the node's allowed hosts")


def allowed_origin(request: web.BaseRequest, settings: HttpSettings) -> str | None:
    """The foreign origin of this request if the owner allows it."""
    origin = request.headers.get(hdrs.ORIGIN)
    return origin if origin is not None and origin in settings.origins else None


def _is_own(origin: str, request: web.Request) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == request.headers[hdrs.HOST].lower()


def check_origin(request: web.Request, settings: HttpSettings) -> None:
    if allowed_origin(request, settings):
        return
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and not _is_own(origin, request):
        raise Forbidden("this node doesn't answer pages of other origins", hint="add the origin to the node's allowed origins")
    if request.headers.get("Sec-Fetch-Site", "").lower() in _FOREIGN_SITES:
        raise Forbidden("this node doesn't answer requests that another site's page makes", hint="open the node's own address")


def check_body(request: web.Request, settings: HttpSettings) -> None:
    if request.method not in _BODY_METHODS or _is_bare_delete(request) or _is_upload(request):
        return
    declared = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if declared in _SAFELISTED:
        shown = declared or "no type"
        raise Forbidden(f"a body of {shown} is refused: any web page could have sent it", hint="send Content-Type: application/json")
    if declared != "application/json":
        raise BadInput(f"a body of type {declared[:80]!r} isn't taken here", hint="send Content-Type: application/json")
    if request.charset is not None and request.charset.lower() not in ("utf-8", "utf8"):
        raise BadInput(f"a body in charset {request.charset[:40]!r} isn't taken here", hint="send UTF-8")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise BadInput("a compressed body isn't taken here", hint="send it without Content-Encoding")
    if request.content_length is not None and request.content_length > settings.max_body:
        raise TooLarge(f"the body is {request.content_length} bytes, this node takes {settings.max_body}")


def _is_bare_delete(request: web.Request) -> bool:
    """A DELETE without a body: no page can send one to a foreign address without asking first."""
    return request.method == "DELETE" and not request.can_read_body and hdrs.CONTENT_TYPE not in request.headers


def _is_upload(request: web.Request) -> bool:
    """A model's files, with a credential in a header that no foreign page can set; the upload itself bounds what it reads."""
    upload = request.path == "/api/v1/models/upload" or request.path.startswith("/api/v1/models/upload/")
    return upload and hdrs.AUTHORIZATION in request.headers


def cors_headers(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": ", ".join(_EXPOSED),
        "Vary": "Origin",
    }


def _preflight() -> web.Response:
    return web.Response(status=204, headers=_ALLOWED)


def guard(settings: HttpSettings) -> Middleware:
    """The middleware that makes the checks above, before any handler."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        check_host(request, settings)
        check_origin(request, settings)
        check_body(request, settings)
        if request.method == "OPTIONS" and allowed_origin(request, settings):
            return _preflight()
        return await handler(request)

    return check
