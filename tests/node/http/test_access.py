"""Accounts over HTTP: the documented shapes, and that nobody gets in who shouldn't."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from yarl import URL

from node.accounts import passwords, usage
from node.accounts.api_keys import KeyRequest
from node.accounts.credentials import key_text, signing_key
from node.accounts.totp import STEP, code_at
from node.http import account_schemas as schemas
from node.http.access import Access, needed
from node.http.app import HttpServer
from node.http.settings import HttpSettings
from protocol import tokens
from tests.node.accounts.world import PASSWORD, FakeSwarm, Home, close_home, open_home
from tests.node.http.conftest import Site
from tests.support.fake_gateway import MODEL, FakeGateway

CHAT = {"model": "ann/demo@1", "messages": [{"role": "user", "content": "hi"}]}
ANN = {"username": "ann", "email": "ann@example.org", "password": PASSWORD}
Keyed = Callable[..., Awaitable["KeyedSite"]]


class KeyedSite(Site):
    home: Home

    async def register(self, name: str = "ann") -> dict[str, Any]:
        reply, body = await self.post("/api/v1/auth/register", ANN | {"username": name})
        assert reply.status == 201, body
        return dict(body["data"])


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
async def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Keyed]:
    monkeypatch.setattr(passwords, "_MEMORY_KIB", 8)
    monkeypatch.setattr(passwords, "_ITERATIONS", 1)
    swarm, sites = FakeSwarm(), []

    async def make(gateway: FakeGateway | None = None, **options: Any) -> KeyedSite:
        home = await open_home(tmp_path / f"home{len(sites)}", swarm, len(sites) + 1)
        access = Access(home.accounts, home.journal, lambda who: {"peer_id": "12D3KooWHome", "http": ["https://home.example"]})
        given = {"open": False, "local": False} | options
        server = HttpServer(gateway or FakeGateway(), HttpSettings(port=0, **given), access)
        await server.start()
        site = KeyedSite(server._gateway, server, ClientSession())  # type: ignore[arg-type]
        site.home = home
        sites.append(site)
        return site

    yield make
    for site in sites:
        await site.session.close()
        await site.server.stop()
        await close_home(site.home)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/api/v1/models"), ("GET", "/api/v1/audit"), ("GET", "/metrics"),
     ("GET", "/api/v1/audit/stages"),
     ("GET", "/api/v1/auth/keys"), ("GET", "/api/v1/users/me/export"), ("GET", "/api/v1/system/swarm")],
)  # fmt: skip
async def test_a_keyed_listener_lets_nobody_in_without_a_credential(keyed: Keyed, method: str, path: str) -> None:
    site = await keyed()
    for headers in ({}, bearer("sk-anything"), bearer("eyJhbGciOiJub25lIn0.e30."), {"Authorization": "Basic YTpi"}):
        reply, raw = await site.call(method, path, headers=headers, json=CHAT if method == "POST" else None)
        assert reply.status == 401, raw
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert not site.gateway.asked
    for public in ("/health", "/docs", "/openapi.json", "/"):
        assert (await site.call("GET", public))[0].status == 200


async def test_an_open_listener_gives_inference_and_public_lists_alone(keyed: Keyed) -> None:
    site = await keyed(open=True)
    assert (await site.post("/v1/chat/completions", CHAT, headers=bearer("sk-dummy")))[0].status == 200
    assert (await site.get("/api/v1/models"))[0] == 200
    for path in ("/api/v1/auth/keys", "/api/v1/users/me", "/api/v1/audit", "/api/v1/audit/stages"):
        assert (await site.get(path))[0] == 401


async def test_from_registration_to_the_end_of_an_account(keyed: Keyed) -> None:
    site = await keyed()
    made = await site.register()
    msgspec.convert(made, schemas.Registered)
    assert made["user_id"].startswith("usr_")
    assert made["api_key"].startswith("mf_live_")
    assert made["username"].startswith("ann@")
    mine = bearer(made["api_key"])
    assert (await site.post("/v1/chat/completions", CHAT, headers=mine))[0].status == 200
    reply, logged = await site.post("/api/v1/auth/login", {"username": "ann", "password": PASSWORD})
    session = msgspec.convert(logged["data"], schemas.LoggedIn)
    assert session.expires_in == 3600
    status, me = await site.get("/api/v1/users/me", headers=bearer(session.access_token))
    assert (status, me["data"]["user_id"], me["data"]["tier"]) == (200, made["user_id"], "free")
    reply, body = await site.post("/api/v1/auth/keys", {"name": "phone", "scopes": ["inference"]}, headers=mine)
    small = msgspec.convert(body["data"], schemas.MadeKey)
    reply, body = await site.post("/api/v1/auth/keys", {"scopes": ["account"]}, headers=bearer(small.api_key))
    assert reply.status == 403
    _, listed = await site.get("/api/v1/auth/keys", headers=mine)
    assert [key["name"] for key in listed["data"]["keys"]] == ["first key", "phone"]
    assert "api_key" not in listed["data"]["keys"][1]
    assert (await site.call("DELETE", f"/api/v1/auth/keys/{small.id}", headers=mine))[0].status == 200
    assert (await site.post("/v1/chat/completions", CHAT, headers=bearer(small.api_key)))[0].status == 401
    reply, _ = await site.post("/api/v1/auth/logout", {}, headers=bearer(session.access_token))
    assert reply.status == 200
    assert (await site.get("/api/v1/users/me", headers=bearer(session.access_token)))[0] == 401
    _, exported = await site.get("/api/v1/users/me/export", headers=mine)
    assert exported["data"]["email"] == ANN["email"]
    assert exported["data"]["usage"][0]["model"] == MODEL.model_id
    reply, _ = await site.call("DELETE", "/api/v1/users/me", json={"password": "not that one"}, headers=mine)
    assert reply.status == 401
    reply, _ = await site.call("DELETE", "/api/v1/users/me", json={"password": PASSWORD}, headers=mine)
    assert reply.status == 200
    assert (await site.get("/api/v1/users/me", headers=mine))[0] == 401


async def test_wider_or_unlimited_keys_are_not_made_by_narrower_ones(keyed: Keyed) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    _, body = await site.post("/api/v1/auth/keys", {"scopes": ["account", "inference"], "models": ["ann/demo@1"]}, headers=mine)
    limited = bearer(body["data"]["api_key"])
    wide: list[dict[str, Any]] = [{"scopes": ["inference"]}, {"scopes": ["inference"], "models": ["other"]}]
    for wanted in [*wide, {"scopes": ["models:write"], "models": ["ann/demo@1"]}]:
        assert (await site.post("/api/v1/auth/keys", wanted, headers=limited))[0].status in (400, 403)
    assert (await site.post("/api/v1/auth/keys", {"scopes": ["admin"]}, headers=mine))[0].status in (400, 403)


async def test_no_key_outlives_or_outreaches_the_one_that_makes_it(keyed: Keyed) -> None:
    site, away = await keyed(), await keyed()
    mine = bearer((await site.register())["api_key"])
    _, body = await site.post("/api/v1/auth/keys", {"scopes": ["account", "inference"], "expires_in": 600}, headers=mine)
    short = bearer(body["data"]["api_key"])
    for wanted in ({"scopes": ["inference"]}, {"scopes": ["inference"], "expires_in": 3_600}):
        assert (await site.post("/api/v1/auth/keys", wanted, headers=short))[0].status == 403
    assert (await site.post("/api/v1/auth/keys", {"scopes": ["inference"], "expires_in": 300}, headers=short))[0].status == 201
    there = {"scopes": ["account", "inference"], "audience": away.home.peer}
    _, body = await site.post("/api/v1/auth/keys", there, headers=mine)
    bound = bearer(body["data"]["api_key"])
    assert (await site.post("/api/v1/auth/keys", {"scopes": ["inference"]}, headers=bound))[0].status == 403
    assert (await site.post("/api/v1/auth/keys", there, headers=bound))[0].status == 201


async def test_a_credential_for_some_models_runs_no_other(keyed: Keyed) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    _, body = await site.post("/api/v1/auth/keys", {"scopes": ["inference"], "models": [MODEL.model_id]}, headers=mine)
    assert (await site.post("/v1/chat/completions", CHAT, headers=bearer(body["data"]["api_key"])))[0].status == 200
    _, body = await site.post("/api/v1/auth/keys", {"scopes": ["inference"], "models": ["mfm1other"]}, headers=mine)
    other = bearer(body["data"]["api_key"])
    assert (await site.post("/v1/chat/completions", CHAT, headers=other))[0].status == 403
    assert (await site.post("/v1/embeddings", {"model": "ann/demo@1", "input": "x"}, headers=other))[0].status == 403


async def test_tokens_for_another_node(keyed: Keyed) -> None:
    home, away = await keyed(), await keyed()
    made = await home.register()
    mine = bearer(made["api_key"])
    _, body = await home.post("/api/v1/auth/tokens", {"audience": away.home.peer, "expires_in": 60}, headers=mine)
    token = bearer(body["data"]["token"])
    assert (await away.post("/v1/chat/completions", CHAT, headers=token))[0].status == 200
    assert (await home.post("/v1/chat/completions", CHAT, headers=token))[0].status == 401
    reply, body = await away.post("/v1/chat/completions", CHAT, headers=mine)
    assert (reply.status, body["error"]["code"]) == (421, "misdirected")
    reply, body = await away.post("/api/v1/auth/keys", {}, headers=mine)
    assert body["error"]["details"]["home"]["http"] == ["https://home.example"]
    reply, body = await away.post("/api/v1/auth/login", {"username": made["username"], "password": PASSWORD})
    assert reply.status == 421, "an identity that has been here, at home elsewhere"
    assert (await away.get("/api/v1/users/me", headers=token))[0] == 403
    _, login = await home.post("/api/v1/auth/login", {"username": "ann", "password": PASSWORD})
    reply, _ = await away.post("/api/v1/auth/refresh", {"refresh_token": login["data"]["refresh_token"]})
    assert reply.status == 421
    assert (await home.call("DELETE", f"/api/v1/auth/keys/{made['key_id']}", headers=mine))[0].status == 200
    assert (await away.post("/v1/chat/completions", CHAT, headers=token))[0].status == 401


async def test_a_login_elsewhere_is_told_the_home(keyed: Keyed) -> None:
    home, away = await keyed(), await keyed()
    made = await home.register()
    login = {"username": "ann", "password": PASSWORD}
    reply, body = await away.post("/api/v1/auth/login", login)
    assert reply.status == 401, "a name that was never here"
    assert "name@HOME" in body["error"]["details"]["suggestion"]
    for name in (f"ann@{home.home.peer}", f"nobody@{home.home.peer}"):
        reply, body = await away.post("/api/v1/auth/login", login | {"username": name})
        assert (reply.status, body["error"]["details"]["home"]["http"]) == (421, ["https://home.example"])
        assert "https://home.example" in body["error"]["message"]
    assert (await home.post("/api/v1/auth/login", login | {"username": f"ann@{home.home.peer}"}))[0].status == 200
    _, body = await home.post("/api/v1/auth/tokens", {"audience": away.home.peer, "expires_in": 60}, headers=bearer(made["api_key"]))
    assert (await away.post("/v1/chat/completions", CHAT, headers=bearer(body["data"]["token"])))[0].status == 200
    for name in ("ann", "ANN", made["username"]):
        reply, body = await away.post("/api/v1/auth/login", login | {"username": name})
        assert (reply.status, body["error"]["code"]) == (421, "misdirected"), "met here with a token"
        assert home.home.peer in body["error"]["message"]
    assert (await away.post("/api/v1/auth/login", login | {"username": "ann@abcdefgh"}))[0].status == 401
    await away.register()  # at home here now too: the bare name is this one's
    assert (await away.post("/api/v1/auth/login", login))[0].status == 200


async def test_names_met_here_cant_be_tried_out(keyed: Keyed) -> None:
    site = await keyed()
    name = f"ann@{(await keyed()).home.peer}"
    found = [(await site.post("/api/v1/auth/login", {"username": name, "password": "x"}))[0].status for _ in range(22)]
    assert (found[:20], found[-1]) == ([421] * 20, 429)


async def test_several_accounts_of_one_name_are_told_apart(keyed: Keyed) -> None:
    homes, away = [await keyed(), await keyed()], await keyed()
    for home in homes:
        user = await home.home.accounts.register("bob", "b@example.org", PASSWORD, "address:192.0.2.9")
        token = bearer(home.home.accounts.sessions.token(user, bytes(16), away.home.peer, ["inference"], None, 60))
        assert (await away.post("/v1/chat/completions", CHAT, headers=token))[0].status == 200
    reply, body = await away.post("/api/v1/auth/login", {"username": "bob", "password": PASSWORD})
    assert reply.status == 421
    assert {one["username"].partition("@")[0] for one in body["error"]["details"]["accounts"]} == {"bob"}
    assert len(body["error"]["details"]["accounts"]) == 2


async def test_signed_requests_over_http(keyed: Keyed) -> None:
    site = await keyed()
    key = signing_key((await site.register())["api_key"])
    body, now = msgspec.json.encode(CHAT), int(time.time())
    head = tokens.sign_request(key, site.home.peer, "POST", "/v1/chat/completions", body, now, b"1" * 16)
    headers = {"Authorization": head, "Content-Type": "application/json"}
    assert (await site.call("POST", "/v1/chat/completions", data=body, headers=headers))[0].status == 200
    for changed in (body, body.replace(b"hi", b"ho")):
        reply, _ = await site.call("POST", "/v1/chat/completions", data=changed, headers=headers)
        assert reply.status == 401
    assert len(site.gateway.asked) == 1


@pytest.mark.parametrize(("known", "status"), [(False, 401), (True, 503)])
async def test_a_signed_body_that_never_comes_is_ended(keyed: Keyed, known: bool, status: int) -> None:
    """A stranger's isn't even waited for."""
    site = await keyed(body_timeout=0.2 if known else 60.0)
    made = await site.register()
    key = signing_key(made["api_key"]) if known else signing_key(key_text(site.home.peer, b"9" * 32))
    head = tokens.sign_request(key, site.home.peer, "POST", "/v1/chat/completions", b"{}", int(time.time()), b"1" * 16)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Authorization: {head}", "Content-Type: application/json"]
    writer.write("\r\n".join([*lines, "Content-Length: 2", "", "{"]).encode())
    line = await asyncio.wait_for(reader.readline(), 3.0)
    assert f" {status} " in line.decode()
    writer.close()


async def test_the_allowance_is_told_and_kept(keyed: Keyed) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    reply, _ = await site.post("/v1/chat/completions", CHAT, headers=mine)
    told = [reply.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Window")]
    assert told == ["100", "99", "3600"]
    for _ in range(99):
        await site.post("/v1/chat/completions", CHAT, headers=mine)
    reply, body = await site.post("/v1/chat/completions", CHAT, headers=mine)
    assert (reply.status, body["error"]["code"], reply.headers["X-RateLimit-Remaining"]) == (429, "rate_limited", "0")
    assert 0 < int(reply.headers["Retry-After"]) <= 37
    _, used = await site.get("/api/v1/users/me/usage", headers=mine)
    report = msgspec.convert(used["data"], schemas.UsageReport)
    assert report.usage_summary["requests"] == 100
    assert (report.model_usage[0]["name"], report.model_usage[0]["completion_tokens"]) == (MODEL.name, 300)
    assert report.rate_limits["tokens_this_month"] == 1_000
    assert (await site.get("/api/v1/users/me", headers=mine))[0] == 200, "looking costs nothing"


async def test_usage_by_days(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    book, now = site.home.accounts.usage, datetime.now(UTC)
    who = site.home.accounts.users.all()[0].public.hex()
    for back in range(400):
        day = (now - timedelta(days=back)).timestamp()
        monkeypatch.setattr(usage, "time", SimpleNamespace(time=lambda day=day: day, gmtime=time.gmtime, strftime=time.strftime))
        book.add(who, "s", f"mfm1{back % 2}", 10, 1)
        book.add("somebody else", "s", "mfm10", 1_000, 1_000)

    def ago(days: int) -> str:
        return (now - timedelta(days=days)).date().isoformat()

    async def report(query: str) -> schemas.UsageReport:
        status, body = await site.get(f"/api/v1/users/me/usage?{query}", headers=mine)
        assert status == 200, body
        return msgspec.convert(body["data"], schemas.UsageReport)

    for query, days in (("", 30), ("period=day", 1), ("period=week", 7), ("period=month", 30), ("period=year", 365),
                        (f"start_date={ago(9)}", 10), (f"start_date={ago(9)}&end_date={ago(3)}", 7), (f"end_date={ago(50)}&period=week", 7),
                        (f"start_date={ago(5)}&end_date={ago(5)}&period=year", 1)):  # fmt: skip
        told = await report(query)
        assert (told.usage_summary["requests"], told.usage_summary["total_tokens"]) == (days, 11 * days), query
        assert [line["date"] for line in told.daily_breakdown] == sorted({line["date"] for line in told.daily_breakdown})
        assert len(told.daily_breakdown) == days
        assert sum(line["requests"] for line in told.model_usage) == days
    told = await report(f"start_date={ago(9)}&end_date={ago(3)}")
    assert (told.usage_summary["start_date"], told.usage_summary["end_date"]) == (ago(9), ago(3))
    assert (told.daily_breakdown[0]["date"], told.daily_breakdown[-1]["date"]) == (ago(9), ago(3))
    assert told.rate_limits["requests_per_hour"] == 100


@pytest.mark.parametrize(
    ("query", "param"),
    [("period=decade", "period"), ("start_date=yesterday", "start_date"), ("start_date=2026-02-30", "start_date"),
     ("end_date=2026-1-1", "end_date"), ("end_date=2026-13-01", "start_date"), ("start_date=2026-03-02&end_date=2026-03-01", "start_date"),
     ("end_date=0001-01-01", "start_date"),
     ("start_date=2024-01-01&end_date=2026-01-01", "start_date"), ("start_date=9999-12-31", "start_date"), ("days=3", "days"),
     ("start_date=2026-01-01&start_date=2026-01-02", "start_date")],
)  # fmt: skip
async def test_ranges_that_are_none(keyed: Keyed, query: str, param: str) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    status, body = await site.get(f"/api/v1/users/me/usage?{query}", headers=mine)
    assert (status, body["error"]["details"]["param"]) == (400, param)


async def test_a_thousand_fresh_identities_get_no_more_than_one(keyed: Keyed) -> None:
    site, home = await keyed(), await keyed()
    user = await home.home.accounts.register("bob", "b@example.org", PASSWORD, "address:192.0.2.9")
    answered = 0
    for number in range(1000):
        token = home.home.accounts.sessions.token(user, b"%016d" % number, site.home.peer, ["inference"], None, 60)
        reply, _ = await site.call("POST", "/v1/chat/completions", json=CHAT, headers=bearer(token))
        answered += reply.status == 200
    # The bucket refills at a hundred an hour while this runs.
    assert 100 <= answered <= 102
    assert len(site.gateway.asked) == answered


async def test_loopback_has_no_limits(keyed: Keyed) -> None:
    site = await keyed(open=True, local=True)
    mine = bearer((await site.register())["api_key"])
    for headers in [{}, mine] * 60:
        reply, _ = await site.post("/v1/chat/completions", CHAT, headers=headers)
        assert reply.status == 200
        assert "X-RateLimit-Limit" not in reply.headers


async def test_behind_a_proxy_its_word_counts_and_only_its_last(keyed: Keyed) -> None:
    site = await keyed(open=True, behind_proxy=True)
    for number in range(101):
        headers = {"X-Forwarded-For": f"203.0.113.{number}, 198.51.100.7"}
        reply, _ = await site.post("/v1/chat/completions", CHAT, headers=headers)
    assert reply.status == 429
    assert (await site.post("/v1/chat/completions", CHAT, headers={"X-Forwarded-For": "198.51.100.8"}))[0].status == 200


async def test_guessing_is_refused_and_written_down(keyed: Keyed) -> None:
    site = await keyed()
    made = await site.register()
    statuses = [
        (await site.post("/api/v1/auth/login", {"username": name, "password": f"wrong {number}"}))[0].status
        for number, name in enumerate(["ann"] * 8 + ["nobody"] * 3)
    ]
    assert statuses[:5] == [401] * 5
    assert set(statuses[5:8]) == {429}
    for number in range(40):
        reply, _ = await site.call("GET", "/v1/models", headers=bearer(key_text(site.home.peer, bytes([number]) * 32)))
    assert reply.status == 429
    entries = await site.home.journal.read(50)
    assert [entry["event"] for entry in entries].count("login_failed") >= 5
    raw = (site.home.journal._path).read_text()
    for secret in (PASSWORD, "wrong 0", ANN["email"], made["api_key"]):
        assert secret not in raw


async def test_one_time_codes_over_http(keyed: Keyed) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    reply, body = await site.post("/api/v1/auth/totp", {"password": PASSWORD}, headers=mine)
    secret = body["data"]["secret"]
    code = code_at(secret, int(time.time()) // STEP)
    _, body = await site.post("/api/v1/auth/totp/confirm", {"totp_code": code}, headers=mine)
    codes = body["data"]["recovery_codes"]
    reply, body = await site.post("/api/v1/auth/login", {"username": "ann", "password": PASSWORD})
    assert (reply.status, body["error"]["code"]) == (401, "totp_required")
    login = {"username": "ann", "password": PASSWORD, "totp_code": codes[0]}
    assert (await site.post("/api/v1/auth/login", login))[0].status == 200
    for guess in (codes[0], "aaaaaaaa-aaaaaaaa", "000000", "123456", "999999"):
        assert (await site.post("/api/v1/auth/login", login | {"totp_code": guess}))[0].status == 401
    assert (await site.post("/api/v1/auth/login", login | {"totp_code": codes[1]}))[0].status == 429


async def test_the_audit_log_is_for_admins(keyed: Keyed) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    assert (await site.get("/api/v1/audit", headers=mine))[0] == 403

    _, text = await site.home.accounts.keys.make(None, KeyRequest("owner", ("admin",)))
    status, body = await site.get("/api/v1/audit?verify=true", headers=bearer(text))
    assert (status, body["data"]["verified"]["fault"]) == (200, None)
    assert body["data"]["entries"][0]["event"] == "registered"


TRICKS = [
    "/api/v1/models/../audit",
    "/api/v1/models/..%2Faudit",
    "/api/v1/models/%2e%2e/audit",
    "/v1/models/x%0A/../../api/v1/audit",
    "//api/v1/audit",
    "/api/v1/audit/",
    "/api/v1/%61udit",
    "/api/v1/AUDIT",
    "/api/v1/audit;x",
    "/api/v1/models/x%2F..%2F..%2Faudit",
    "/api/v1/audit%00",
]


@pytest.mark.parametrize("path", TRICKS)
async def test_path_tricks_reach_nothing(keyed: Keyed, path: str) -> None:
    site = await keyed(open=True)
    async with site.session.get(URL(site.server.url + path, encoded=True)) as reply:
        assert reply.status in (400, 401, 403, 404)
        assert b"entries" not in await reply.read()


def test_what_the_table_does_not_know_needs_a_scope() -> None:
    assert needed("POST", "/v1/anything/new") == "inference"
    assert needed("PATCH", "/api/v1/models/{id}") == "models:write"
    assert needed("GET", "/api/v1/models/upload/{id}/status") == "models:write"
    assert needed("GET", "/health") is None
