"""Metrics, the OpenAPI document and the pages from the package."""

from __future__ import annotations

import asyncio
import json
import re
from importlib.resources import files
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.http.access import needed
from node.http.app import make_app
from node.http.generation import route_header
from node.http.metrics import Reading
from node.http.openapi import document
from node.http.settings import HttpSettings
from tests.node.http.conftest import Site, Start, untold
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


@pytest.mark.parametrize("ollama", [False, True])
async def test_the_document_covers_every_route_and_its_references_hold(start: Start, ollama: bool) -> None:
    site = await start(ollama=ollama)
    _, served = await site.get("/openapi.json")
    assert served["openapi"] == "3.1.0"
    app = make_app(FakeGateway(), HttpSettings(ollama=ollama))
    routes = {
        (re.sub(r":[^}]*", "", r.resource.canonical), r.method.lower()) for r in app.router.routes() if r.resource and r.method != "HEAD"
    }
    documented = {(path, method) for path, methods in served["paths"].items() for method in methods}
    assert {route for route in routes if route[0] not in UNDOCUMENTED} == documented
    known = {f"#/components/{kind}/{name}" for kind, listed in served["components"].items() for name in listed}
    assert _references(document(ollama)) <= known
    chats = [schema for name, schema in served["components"]["schemas"].items() if name.endswith("ChatRequest")]
    assert [schema["additionalProperties"] for schema in chats] == [False] * (1 + ollama)


@pytest.mark.parametrize("ollama", [False, True])
def test_every_operation_has_its_group_and_says_what_failures_mean(ollama: bool) -> None:
    told = document(ollama)
    groups = [tag["name"] for tag in told["tags"]]
    operations = [operation for methods in told["paths"].values() for operation in methods.values()]
    assert {operation["tags"][0] for operation in operations} == set(groups)
    assert ("Ollama's API" in groups) == ollama
    assert told["paths"]["/v1/chat/completions"]["post"]["tags"] == ["OpenAI's API"]
    failures = {"400", "401", "403", "413", "421", "429", "499", "500", "503"}
    for operation in operations:
        assert failures <= operation["responses"].keys()
        for status in failures:
            failed = told["components"]["responses"][operation["responses"][status]["$ref"].rpartition("/")[2]]
            assert len(failed["description"]) > 10
            assert ("Retry-After" in failed["headers"]) == (status in ("429", "503"))
            assert {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Window"} <= failed["headers"].keys()


def test_the_document_tells_of_xml_signed_requests_and_keys_for_asking_again() -> None:
    told = document()
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            xml = {status for status, reply in operation["responses"].items() if "application/xml" in reply.get("content", {})}
            assert bool(xml) == path.startswith("/api/v1/"), path
            open_to_all = {} in operation["security"]
            assert {"signed": []} in operation["security"]
            assert open_to_all == (needed(method.upper(), path) in (None, "inference", "models:read")), path
    assert told["components"]["securitySchemes"]["signed"]["scheme"] == "MF1"
    keyed = {path for path, methods in told["paths"].items() if "Idempotency-Key" in str(methods.get("post", {}).get("parameters"))}
    assert keyed == {"/api/v1/models/{id}/inference", "/api/v1/models/{id}/inference/batch", "/api/v1/inference/compare"}
    assert "Link" in told["paths"]["/api/v1/models"]["get"]["responses"]["200"]["headers"]


def test_an_answer_that_the_document_doesnt_tell_is_noticed() -> None:
    none: frozenset[str] = frozenset()
    assert untold(("GET", "/v1/models", 200, "application/json", frozenset({"X-Request-Id"}))) is None
    assert untold(("HEAD", "/v1/models", 200, "application/json", none)) is None
    assert untold(("GET", "/v1/models", 418, "application/json", none)) == "GET /v1/models: 418"
    assert untold(("GET", "/v1/models", 200, "application/xml", none)) == "GET /v1/models: 200 as application/xml"
    assert untold(("GET", "/v1/models", 200, "application/json", frozenset({"Link"}))) == "GET /v1/models: 200 with ['Link']"
    assert untold(("PUT", "/v1/models", 200, "application/json", none)) == "PUT /v1/models"


def test_who_doesnt_wait_is_told_of_in_the_document() -> None:
    accepted = document()["paths"]["/api/v1/models/{id}/inference"]["post"]["responses"]["202"]
    assert accepted["content"]["application/json"]["schema"]["properties"]["data"]["$ref"].endswith("/Accepted")


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/web/style.css", "/web/chat.js", "/web/docs.js", "/web/key.js", "/web/schema.js", "/web/icon.svg"]
)
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


def test_the_page_keeps_its_key_in_the_tab_alone() -> None:
    scripts = {entry.name: entry.read_text() for entry in (files("node.http") / "web").iterdir() if entry.name.endswith(".js")}
    everything = "".join(scripts.values())
    assert "localStorage" not in everything
    assert "cookie" not in everything
    assert [name for name, text in scripts.items() if "sessionStorage" in text] == ["key.js"]
    for name in ("chat.js", "docs.js"):
        assert 'from "/web/key.js"' in scripts[name]


_KEY_CHECKS = """
const store = new Map();
globalThis.sessionStorage = {
  getItem: (name) => store.get(name) ?? null,
  setItem: (name, text) => store.set(name, text),
  removeItem: (name) => store.delete(name),
};
const is = (found, wanted) => { if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(JSON.stringify(found)); };
const { key, keep, withKey, failure } = await import("data:text/javascript," + encodeURIComponent(SOURCE));
is(withKey(), {});
keep("  mf_live_abc\\n");
is([key(), withKey(), [...store.values()]], ["mf_live_abc", { Authorization: "Bearer mf_live_abc" }, ["mf_live_abc"]]);
keep("");
is([key(), withKey(), store.size], ["", {}, 0]);
globalThis.sessionStorage = { getItem() { throw new Error("no store"); }, setItem() { throw new Error("no store"); }, removeItem() {} };
keep("mf_tok_x");
is(key(), "mf_tok_x");
const body = { error: { message: "no", details: { suggestion: "give one" } } };
const said = await failure(new Response(JSON.stringify(body), { status: 401 }));
is([said.message, said.status, said.suggestion], ["no", 401, "give one"]);
is((await failure(new Response("<html>", { status: 502 }))).message, "HTTP 502");
"""


async def test_the_pages_key_is_kept_sent_and_forgotten() -> None:
    source = (files("node.http") / "web" / "key.js").read_text()
    script = _KEY_CHECKS.replace("SOURCE", json.dumps(source))
    ran = await asyncio.create_subprocess_exec(
        "node", "--input-type=module", "-e", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(ran.communicate(), 60)
    assert ran.returncode == 0, out.decode()
