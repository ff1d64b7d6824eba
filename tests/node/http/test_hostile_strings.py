"""Forty hostile strings through every door that takes text: refused or answered as text, never an error of the node's, never let in."""

from __future__ import annotations

import json
import logging
import re
import xml.etree.ElementTree as tree
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientResponse
from prometheus_client.parser import text_string_to_metric_families

from node.cli.app import run_command_line
from node.logs import JsonFormatter
from tests.node.http.conftest import Site
from tests.node.http.test_access import Keyed, bearer, keyed
from tests.support.hostile_strings import HOSTILE

__all__ = ["keyed"]


def lines_of(records: list[logging.LogRecord]) -> list[str]:
    return [JsonFormatter().format(record) for record in records]


def asks_with(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, what goes with it): every place that takes text."""
    short, spelled = text[:2_000], quote(text[:2_000], safe="")
    header = re.sub(r"[^\x20-\x7e]", "?", short)
    return [
        ("POST", "/api/v1/auth/register", {"json": {"username": text, "email": text, "password": text}}),
        ("POST", "/api/v1/auth/login", {"json": {"username": text, "password": text}}),
        ("POST", "/v1/chat/completions", {"json": {"model": text, "messages": [{"role": "user", "content": text}]}}),
        ("POST", "/api/v1/auth/keys", {"json": {"name": text, "models": [text]}}),
        ("POST", "/api/v1/auth/keys", {"json": {text: 1}}),
        ("GET", f"/api/v1/models?search={spelled}&category={spelled}", {}),
        ("GET", f"/api/v1/models/{spelled}", {}),
        ("POST", f"/api/v1/models/{spelled}/inference", {"json": {"input": {"text": text}}}),
        ("DELETE", f"/api/v1/inference/{spelled}", {}),
        ("GET", "/api/v1/models", {"headers": {"X-Request-Id": header, "Accept": "application/xml", "User-Agent": header}}),
        ("GET", "/api/v1/users/me", {"headers": {"Authorization": f"Bearer mf_{header}"}}),
        ("GET", "/api/v1/users/me", {"headers": {"Authorization": f"MF1 {header}"}}),
    ]


def check_answer(reply: ClientResponse, raw: bytes) -> None:
    assert reply.status < 500, (reply.url, raw)
    assert "X-Injected" not in reply.headers
    assert re.fullmatch(r"[\w.-]{1,64}", reply.headers["X-Request-Id"])
    if reply.content_type == "application/xml":
        tree.fromstring(raw)
    else:
        json.loads(raw)


async def test_in_json_paths_queries_headers_logs_and_metrics(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site = await keyed()
    accounts = site.home.accounts
    key = bearer((await site.register())["api_key"])
    for text in HOSTILE:
        accounts.guessing._misses.clear()  # one after the other would soon have to wait
        accounts._registered.clear()
        accounts.windows._uses.clear()
        for method, path, more in asks_with(text):
            headers = key | more.pop("headers", {})
            check_answer(*await site.call(method, path, headers=headers, **more))
    assert len(accounts.users.all()) == 1
    _, page = await site.call("GET", "/metrics", headers=key)
    assert "mf_forged" not in {family.name for family in text_string_to_metric_families(page.decode())}
    for line in lines_of(caplog.records):
        assert "\n" not in line
        assert json.loads(line)["event"] != "forged"
        assert len(line) < 20_000
    assert (await site.home.journal.check()).fault is None


async def test_in_an_answer_as_xml_and_as_events(site: Site) -> None:
    """What a model says may be anything: it stays inside its element, its line."""
    for text in HOSTILE:
        await says(site, text)


async def says(site: Site, text: str) -> None:
    site.gateway.words = [text, "end"]
    body = {"input": {"text": "x"}}
    reply, raw = await site.call("POST", "/api/v1/models/ann%2Fdemo@1/inference", json=body, headers={"Accept": "application/xml"})
    assert reply.status == 200
    found = tree.fromstring(raw).find(".//text")
    assert found is not None
    assert len(list(found)) == 0
    _, events = await site.events("/api/v1/models/ann%2Fdemo@1/inference", body | {"parameters": {"stream": True}})
    assert [name for name, _ in events] == ["start", *["token"] * (2 if text else 1), "finish"]
    assert json.loads(events[-1][1])["result"]["text"] == text + "end"


def test_on_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """No node runs there: exit code 8 says that it came so far, 2 that it was refused; nothing else happens."""
    for text in [text for text in HOSTILE if "\x00" not in text and len(text) < 10_000]:
        tried(text, tmp_path, capsys)


def tried(text: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    to = str(tmp_path / "to")
    for arguments in (["models", "--", text], ["key", "create", "--name", text], ["trust", "--", text], ["fetch", "--", text, to]):
        code = run_command_line(["--data-dir", str(tmp_path / "node"), *arguments])
        said = capsys.readouterr()
        assert code in (2, 8), (arguments, said)
        assert "Traceback" not in said.err
        assert "\x1b[31mred" not in said.err
    assert not (tmp_path / "to").exists()
