"""A real server on a free port over a fake gateway, and a client beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from node.http import app as http_app
from node.http.access import route_of
from node.http.app import HttpServer
from node.http.errors import Handler
from node.http.openapi import document
from node.http.openapi_replies import HEADERS
from node.http.settings import HttpSettings
from tests.support.fake_gateway import FakeGateway


@dataclass
class Site:
    """What a test holds: the gateway behind, the server, and calls to it."""

    gateway: FakeGateway
    server: HttpServer
    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, **more: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        async with self.session.request(method, f"{self.server.url}{path}", **more) as reply:
            return reply, await reply.read()

    async def get(self, path: str, **more: Any) -> tuple[int, Any]:
        reply, body = await self.call("GET", path, **more)
        return reply.status, msgspec.json.decode(body)

    async def post(self, path: str, body: Any, **more: Any) -> tuple[aiohttp.ClientResponse, Any]:
        reply, answer = await self.call("POST", path, json=body, **more)
        return reply, msgspec.json.decode(answer)

    async def events(self, path: str, body: Any) -> tuple[aiohttp.ClientResponse, list[tuple[str | None, str]]]:
        """A whole stream as (event's name, data)."""
        reply, raw = await self.call("POST", path, json=body)
        return reply, [_event(text) for text in raw.decode().split("\n\n") if text]


def _event(text: str) -> tuple[str | None, str]:
    fields = dict(line.split(": ", 1) for line in text.split("\n"))
    return fields.get("event"), fields["data"]


Start = Callable[..., Awaitable[Site]]
Answer = tuple[str, str, int, str, frozenset[str]]
"""Method, route, status, type, and which of the headers that the document knows."""


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Answer]]:
    """Every answer that a test here gets out of a server is one that the OpenAPI document tells of, or the test fails."""
    seen: set[Answer] = set()
    real = http_app.observe

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await real(request, handler)
        headers = frozenset(name for name in HEADERS if name in response.headers)
        seen.add((request.method, route_of(request) or "", response.status, response.content_type, headers))
        return response

    monkeypatch.setattr(http_app, "observe", note)
    yield seen
    undocumented = [wrong for answer in seen if (wrong := untold(answer))]
    assert not undocumented


def untold(answer: Answer) -> str | None:
    """What of an answer the document doesn't tell; None where it tells all, or the route is none that it is about."""
    method, route, status, kind, headers = answer
    told, path = document(True), f"{method} {route}"
    if route in ("", "/web/{name}"):
        return None
    operation = told["paths"].get(route, {}).get(method.lower().replace("head", "get"))
    if operation is None:
        return path
    response = operation["responses"].get(str(status))
    if response is None:
        return f"{path}: {status}"
    response = told["components"]["responses"][response["$ref"].rpartition("/")[2]] if "$ref" in response else response
    if status != 499 and kind not in response["content"]:
        return f"{path}: {status} as {kind}"
    more = headers - response["headers"].keys()
    return f"{path}: {status} with {sorted(more)}" if more else None


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    sites: list[Site] = []

    async def make(gateway: FakeGateway | None = None, **options: Any) -> Site:
        gateway = gateway or FakeGateway()
        server = HttpServer(gateway, HttpSettings(port=0, **options))
        await server.start()
        sites.append(Site(gateway, server, aiohttp.ClientSession()))
        return sites[-1]

    yield make
    for site in sites:
        await site.session.close()
        await site.server.stop()


@pytest.fixture
async def site(start: Start) -> Site:
    return await start()
