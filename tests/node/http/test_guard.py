"""Rebinding names, foreign pages and bodies that any page could post are refused; the node's own are let in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.http.guard import host_name
from tests.node.http.conftest import Site, Start

CHAT = {"model": "ann/demo@1", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8640", "localhost.evil.example", "127.0.0.1.evil.example", "a@localhost", "", "localhost:x"]
)
async def test_a_foreign_host_header_is_refused(site: Site, host: str) -> None:
    status, body = await site.get("/v1/models", headers={"Host": host})
    assert status in (400, 403)
    assert body["error"]["type"] in ("permission_error", "invalid_request_error")
    assert not site.gateway.queries


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:5"])
async def test_loopback_names_are_known(site: Site, host: str) -> None:
    assert (await site.get("/v1/models", headers={"Host": host}))[0] == 200


async def test_a_configured_host_is_known(start: Start) -> None:
    site = await start(hosts=("Node.example",))
    assert (await site.get("/health", headers={"Host": "node.EXAMPLE:80"}))[0] == 200
    assert (await site.get("/health", headers={"Host": "other.example"}))[0] == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:1"])
async def test_a_foreign_origin_is_refused(site: Site, origin: str) -> None:
    reply, body = await site.post("/v1/chat/completions", CHAT, headers={"Origin": origin})
    assert reply.status == 403
    assert body["error"]["code"] == "forbidden"
    assert not site.gateway.asked


async def test_the_page_of_this_node_may_call(site: Site) -> None:
    headers = {"Origin": site.server.url, "Sec-Fetch-Site": "same-origin"}
    assert (await site.post("/v1/chat/completions", CHAT, headers=headers))[0].status == 200


@pytest.mark.parametrize("given_site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["/", "/health", "/api/v1/models", "/metrics"])
async def test_a_request_made_by_another_site_is_refused(site: Site, path: str, given_site: str) -> None:
    assert (await site.get(path, headers={"Sec-Fetch-Site": given_site}))[0] == 403


async def test_an_allowed_origin_gets_cors_and_others_still_none(start: Start) -> None:
    site = await start(origins=("https://chat.example",))
    good = {"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}
    preflight, _ = await site.call("OPTIONS", "/v1/chat/completions", headers={**good, "Access-Control-Request-Method": "POST"})
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Headers"].startswith("content-type")
    reply, _ = await site.post("/v1/chat/completions", CHAT, headers=good)
    assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (200, "https://chat.example")
    bad, _ = await site.call("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://evil.example"})
    assert bad.status == 403
    assert "Access-Control-Allow-Origin" not in bad.headers


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/models/ann%2Fdemo@1/inference"])
async def test_bodies_that_any_page_can_post_are_refused(site: Site, kind: str, path: str) -> None:
    reply, _ = await site.call("POST", path, data=msgspec.json.encode(CHAT), headers={"Content-Type": kind})
    assert reply.status == 403
    assert not site.gateway.asked


async def test_a_body_without_a_type_is_refused(site: Site) -> None:
    reply, _ = await site.call("POST", "/v1/chat/completions", data=b"{}", skip_auto_headers=["Content-Type"])
    assert reply.status == 403


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"Content-Type": "application/xml"}, "application/xml"),
        ({"Content-Type": "application/json; charset=utf-16"}, "utf-16"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "compressed"),
    ],
)
async def test_other_bodies_are_refused_by_name(site: Site, headers: dict[str, str], named: str) -> None:
    reply, raw = await site.call("POST", "/v1/chat/completions", data=b"{}", headers=headers, compress=False)
    assert reply.status == 400
    assert named in msgspec.json.decode(raw)["error"]["message"]


async def test_a_body_over_the_limit_is_refused(start: Start) -> None:
    site = await start(max_body=1000)
    reply, _ = await site.call("POST", "/v1/chat/completions", data=b" " * 1001, headers={"Content-Type": "application/json"})
    assert reply.status == 413


async def test_a_body_without_a_length_is_cut_at_the_limit(start: Start) -> None:
    site = await start(max_body=1000)

    async def parts() -> Any:
        for _ in range(40):
            yield b" " * 100

    reply, raw = await site.call("POST", "/v1/chat/completions", data=parts(), headers={"Content-Type": "application/json"})
    assert reply.status == 413
    assert msgspec.json.decode(raw)["error"]["code"] == "too_large"


@given(st.text(max_size=80))
def test_host_names_never_raise_and_hold_no_path(text: str) -> None:
    name = host_name(text)
    assert name is None or not set("/@?#") & set(name)
