"""A real server on a free port over a fake gateway, and a client beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest

from node.http.app import HttpServer
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
