"""The page at `/` and the one at `/docs`: files of this package, no outside host, no inline script."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from aiohttp import web

from protocol.errors import NotFound

_TYPES = {
    "index.html": "text/html",
    "docs.html": "text/html",
    "style.css": "text/css",
    "chat.js": "text/javascript",
    "docs.js": "text/javascript",
    "key.js": "text/javascript",
    "schema.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _content(name: str) -> bytes:
    return (files("node.http") / "web" / name).read_bytes()


def _serve(name: str) -> web.Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return web.Response(body=_content(name), content_type=_TYPES[name], charset="utf-8", headers=headers)


async def home(request: web.Request) -> web.StreamResponse:
    return _serve("index.html")


async def docs(request: web.Request) -> web.StreamResponse:
    return _serve("docs.html")


async def asset(request: web.Request) -> web.StreamResponse:
    """Only names of the table above: the path never reaches the file system otherwise."""
    name = request.match_info["name"]
    if name not in _TYPES:
        raise NotFound("the page has no such file")
    return _serve(name)


ROUTES = [web.get("/", home), web.get("/docs", docs), web.get("/web/{name}", asset)]
