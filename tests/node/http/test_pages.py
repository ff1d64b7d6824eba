"""Metrics, the OpenAPI document and the pages from the package."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.http.app import make_app
from node.http.generation import route_header
from node.http.metrics import Reading
from node.http.openapi import document
from node.http.settings import HttpSettings
from tests.node.http.conftest import Site
from tests.support.fake_gateway import FakeGateway

UNDOCUMENTED = {"/web/{name}"}


async def test_metrics_count_requests_tokens_and_lent_gauges(site: Site) -> None:
    site.server.metrics.register_collector(
        lambda: [Reading("mf_peers", "Peers by state", 5, {"state": "alive"}), Reading("mf_shards", "Shards", 7)]
    )
    chat = {"model": "ann/demo@1", "messages": [{"role": "user", "content": "x"}]}
    await site.post("/v1/chat/completions", chat)
    await site.get("/api/v1/models/some%2Fthing")
    await site.get("/a/path/with/secrets")
    _, raw = await site.call("GET", "/metrics")
    samples = {(s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(raw.decode()) for s in f.samples}
    assert samples["mf_tokens_total", "completion"] == 3
    assert samples["mf_generations_total", "pipeline", "stop"] == 1
    assert samples["mf_time_to_first_token_seconds_count",] == 1
    assert samples["mf_http_requests_total", "/api/v1/models/{id}", "404", "GET"] == 1
    assert samples["mf_http_requests_total", "404", "GET", "unmatched"] == 1
    assert samples["mf_http_requests_in_flight",] == 1
    assert (samples["mf_peers", "alive"], samples["mf_shards",]) == (5, 7)
    assert b"secrets" not in raw


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(_references(child) for child in node.values()))
    return set().union(*(_references(child) for child in node)) if isinstance(node, list) else set()


async def test_the_document_covers_every_route_and_its_references_hold(site: Site) -> None:
    _, served = await site.get("/openapi.json")
    assert served["openapi"] == "3.1.0"
    app = make_app(FakeGateway(), HttpSettings())
    routes = {
        (re.sub(r":[^}]*", "", r.resource.canonical), r.method.lower()) for r in app.router.routes() if r.resource and r.method != "HEAD"
    }
    documented = {(path, method) for path, methods in served["paths"].items() for method in methods}
    assert {route for route in routes if route[0] not in UNDOCUMENTED} == documented
    known = {f"#/components/schemas/{name}" for name in served["components"]["schemas"]}
    assert _references(document()) <= known
    assert served["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False


@pytest.mark.parametrize("ollama", [False, True])
def test_every_operation_has_its_group_and_says_what_failures_mean(ollama: bool) -> None:
    told = document(ollama)
    groups = [tag["name"] for tag in told["tags"]]
    operations = [operation for methods in told["paths"].values() for operation in methods.values()]
    assert {operation["tags"][0] for operation in operations} == set(groups)
    assert ("Ollama's API" in groups) == ollama
    assert told["paths"]["/v1/chat/completions"]["post"]["tags"] == ["OpenAI's API"]
    for operation in operations:
        failures = [status for status in operation["responses"] if status >= "400"]
        assert {"400", "403", "500"} <= set(failures)
        assert all(len(operation["responses"][status]["description"]) > 10 for status in failures)


def test_who_doesnt_wait_is_told_of_in_the_document() -> None:
    accepted = document()["paths"]["/api/v1/models/{id}/inference"]["post"]["responses"]["202"]
    assert accepted["content"]["application/json"]["schema"]["properties"]["data"]["$ref"].endswith("/Accepted")


@pytest.mark.parametrize("path", ["/", "/docs", "/web/style.css", "/web/chat.js", "/web/docs.js", "/web/schema.js", "/web/icon.svg"])
async def test_pages_come_from_the_package_and_call_nobody_else(site: Site, path: str) -> None:
    reply, raw = await site.call("GET", path)
    assert reply.status == 200
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    hosts = set(re.findall(rb"(?:https?:)?//[\w.-]+\.\w+", raw)) - {b"http://www.w3.org"}
    assert not hosts
    assert b"onclick=" not in raw or path.endswith(".js")


async def test_every_file_of_the_page_is_used_and_inline_code_is_absent() -> None:
    names = {entry.name for entry in (files("node.http") / "web").iterdir()}
    for name in names:
        if name.endswith(".html"):
            text = (files("node.http") / "web" / name).read_text()
            assert set(re.findall(r'(?:src|href)="/web/([\w.]+)"', text)) <= names
            assert not re.search(r"<script(?![^>]*src=)|<style|style=", text)


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "app.py", "index.html%00"])
async def test_no_other_file_is_served(site: Site, name: str) -> None:
    reply, _ = await site.call("GET", f"/web/{name}")
    assert reply.status == 404


def test_a_route_header_is_ascii_short_and_safe() -> None:
    hostile = [{"peer": "a\r\nSet-Cookie: x=é", "first": 0, "end": 4}]
    assert route_header("here", hostile) == "here;aSet-Cookie:x[0-4]"
    long = route_header("pipeline", [{"peer": "p" * 52, "first": i, "end": i + 1} for i in range(200)])
    assert len(long) <= 4096
    assert long.endswith("...")
