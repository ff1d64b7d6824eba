"""On every route: query fields that the document doesn't have are refused by name, and bodies too large, too deep or of no sense."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest

from node.accounts.api_keys import KeyRequest
from node.accounts.caller import UNLIMITED, Caller
from node.http import access
from node.http.openapi import operations_by_route
from tests.node.http.conftest import Site, Start
from tests.node.http.test_access import bearer
from tests.node.http.test_upload import Taking, taking

__all__ = ["taking"]

API = sorted(key for key in operations_by_route(True) if key[1].startswith(("/v1/", "/api/")))


@pytest.fixture
async def everybody_may(start: Start, monkeypatch: pytest.MonkeyPatch) -> Site:
    every = frozenset({"inference", "models:read", "models:write", "account", "admin"})
    monkeypatch.setattr(access, "LOCAL", Caller("open", every, "open", UNLIMITED))
    return await start(ollama=True)


@pytest.mark.parametrize(("method", "path"), API)
async def test_unknown_query_fields_are_refused_by_name(everybody_may: Site, method: str, path: str) -> None:
    site = everybody_may
    body = {} if method in ("GET", "DELETE") else {"json": {}}
    reply, raw = await site.call(method, f"{re.sub(r'{[a-z]+}', 'x', path)}?colour=red&seed=1", **body)
    said = msgspec.json.decode(raw)["error"]
    message = said if isinstance(said, str) else said["message"]
    assert (reply.status, "unknown option: colour, seed" in message) == (400, True), message
    assert not site.gateway.asked
    assert not site.gateway.queries


async def test_a_field_given_twice_is_refused(site: Site) -> None:
    for path in ("/v1/models?a=1&a=2", "/api/v1/models?page=1&page=2"):
        status, body = await site.get(path)
        assert status == 400
        assert "more than once" in body["error"]["message"]


async def test_pages_and_monitors_may_add_what_they_like(site: Site) -> None:
    for path in ("/?v=2", "/docs?x=1", "/metrics?name=mf", "/health?probe=1"):
        assert (await site.call("GET", path))[0].status == 200


BODIES = [key for key in API if operations_by_route(True)[key].body is not None]
JSON = {"Content-Type": "application/json"}


async def test_bodies_that_no_route_takes(taking: Taking) -> None:
    mine = bearer((await taking.register("carl"))["api_key"])
    _, text = await taking.home.accounts.keys.make(None, KeyRequest("owner", ("admin",)))
    deep = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for method, path in BODIES:
        place, key = re.sub(r"{[a-z]+}", "x", path), bearer(text) if access.needed(method, path) == "admin" else mine
        if path.startswith("/api/v1/") or path.startswith("/v1/"):
            for body in (deep, b"{", b"[]", b"\xff\xfe{}", b"", b"null", b'{"colour": 1}'):
                reply, raw = await taking.call(method, place, data=body, headers=JSON | key)
                # What isn't there, and what isn't the caller's to change, is said before a body is read.
                told_first = 403 if path.endswith("/callers") else 404 if path.endswith(("/share", "/members")) else 400
                assert reply.status in (400, told_first), (path, body[:20], raw[:300])
            await _gigabyte(taking, method, place, key["Authorization"])
    assert not taking.gateway.asked
    assert len(taking.home.accounts.users.all()) == 2


async def _gigabyte(site: Site, method: str, place: str, credential: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    head = f"{method} {place} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {credential}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {1 << 30}\r\n\r\n".encode())
    async with asyncio.timeout(10):
        line = await reader.readline()
    assert b" 413 " in line, (place, line)
    writer.close()
