"""Requests that are wrong, or that a foreign page could have made, against a real node: refused by name, and the next
good one is answered.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from node.cli.owner_client import call
from protocol import limits
from protocol.errors import BadInput, TooLarge
from tests.support.processes import CommandFailed, Node, Swarm
from tests.swarm import tools

pytestmark = pytest.mark.swarm

CHAT = "/v1/chat/completions"
INFERENCE = "/api/v1/models/tiny/inference"
QUESTION: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture
def node(calm: Swarm) -> Node:
    return calm.nodes[2]


@pytest.fixture(autouse=True)
def answers_afterwards(node: Node) -> Any:
    yield
    assert node.http("GET", "/health", timeout=2.0)[0] == 200


def error(body: bytes) -> dict[str, Any]:
    return dict(json.loads(body)["error"])


def test_an_unknown_model_has_near_names(node: Node) -> None:
    status, _, body = node.http("POST", CHAT, {**QUESTION, "model": "tinny"})
    assert (status, error(body)["code"], error(body)["param"]) == (404, "model_not_found", "model")
    assert "tiny" in error(body)["message"]
    status, _, body = node.http("GET", "/api/v1/models/tinny")
    assert status == 404
    assert any("tiny" in name for name in error(body)["details"]["candidates"])
    with pytest.raises(CommandFailed) as caught:
        node.cli("explain", "tinny")
    assert (caught.value.code, caught.value.error["code"]) == (3, "not_found")
    assert any("tiny" in name for name in caught.value.error["details"]["candidates"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"nul", b"\xff\xfe", b"[" * 100_000, b'{"model": "tiny",}'])
@pytest.mark.parametrize("path", [CHAT, INFERENCE])
def test_malformed_json(node: Node, path: str, body: bytes) -> None:
    assert node.http("POST", path, body)[0] == 400


WRONG: dict[str, Any] = {
    "max_tokens": "many",
    "temperature": "warm",
    "top_p": 7,
    "messages": "hi",
    "stream": "yes",
    "seed": 1.5,
    "stop": 3,
    "model": 5,
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_type_is_named(node: Node, field: str) -> None:
    status, _, body = node.http("POST", CHAT, {**QUESTION, field: WRONG[field]})
    assert (status, error(body)["param"]) == (400, field), body


@pytest.mark.parametrize("value", [-1, 0, 1 << 40, 1 << 70])
def test_absurd_numbers_of_tokens(node: Node, value: int) -> None:
    status, _, body = node.http("POST", CHAT, {**QUESTION, "max_tokens": value})
    assert (status, "max_tokens" in error(body)["message"]) == (400, True), body


@pytest.mark.parametrize("size", [10_000_000, 3_900_000])
@pytest.mark.parametrize("way", [CHAT, INFERENCE, "the owner's socket"])
def test_a_prompt_of_megabytes(node: Node, way: str, size: int) -> None:
    """Refused in words, beyond the body's bound or within it, and no process keeps more than a few times its size."""
    assert node.http("POST", CHAT, QUESTION)[0] == 200
    worker = node.event("worker_started", 1.0)["pid"]
    before = [tools.pss(pid) for pid in (node.pid, worker)]
    words = "x" * size
    if way == "the owner's socket":
        with pytest.raises((BadInput, TooLarge)) as caught:
            call(node.data_dir, "generate", {"model": "tiny", "text": words, "max_tokens": 1}, timeout=30.0)
        status, said = caught.value.status, caught.value.message
    else:
        chat = QUESTION | {"messages": [{"role": "user", "content": words}]}
        body = chat if way == CHAT else {"input": {"text": words, "max_tokens": 1}}
        status, _, raw = node.http("POST", way, body, timeout=30.0)
        said = error(raw)["message"]
    assert (status, str(size)[:3] in said) == ((413 if size > limits.MAX_PROMPT else 400), True), said
    assert tools.process_of(node, tools.WORKER) == worker
    assert all(tools.pss(pid) - was < 64 * limits.MIB for pid, was in zip((node.pid, worker), before, strict=True))
    assert node.http("POST", CHAT, QUESTION)[0] == 200


def test_unknown_options_are_all_named(node: Node) -> None:
    status, _, body = node.http("POST", CHAT, {**QUESTION, "beam_width": 4, "top_a": 1, "colour": "red"})
    assert status == 400
    assert all(name in error(body)["message"] for name in ("beam_width", "top_a", "colour"))
    status, _, body = node.http("GET", "/api/v1/models?colour=red")
    assert (status, "colour" in error(body)["message"]) == (400, True)


FOREIGN: dict[str, dict[str, str]] = {
    "rebinding": {"Host": "evil.example"},
    "rebinding with the port": {"Host": "localhost.evil.example:8640"},
    "a form of another site": {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "cross-site"},
    "a form without marks": {"Content-Type": "multipart/form-data; boundary=x"},
    "fetch with no-cors": {"Content-Type": "text/plain", "Origin": "https://evil.example", "Sec-Fetch-Mode": "no-cors"},
    "JSON of another origin": {"Origin": "https://evil.example"},
    "a sandboxed frame": {"Origin": "null"},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_peoples_pages(node: Node, case: str) -> None:
    status, headers, _ = node.http("POST", CHAT, QUESTION, FOREIGN[case])
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_what_is_hardly_http(node: Node) -> None:
    """Long lines, long heads, bodies that lie about their length, paths out of the page's folder."""
    assert node.http("GET", "/" + "a" * 100_000)[0] in (400, 404, 414)
    assert node.http("GET", "/health", headers={"X-Long": "a" * 100_000})[0] in (400, 431)
    assert node.http("GET", "/api/v1/models/" + "%2e%2e%2f" * 20 + "etc%2fpasswd")[0] == 404
    assert node.http("GET", "/../../etc/passwd")[0] == 404
    assert node.http("DELETE", "/v1/models/tiny", b"{}")[0] == 405
    url = urlsplit(node.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=5.0)
    try:
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(1 << 60))
        connection.endheaders()
        assert connection.getresponse().status == 413
    finally:
        connection.close()
