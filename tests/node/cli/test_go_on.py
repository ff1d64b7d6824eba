"""A chat whose node dies goes on at the next one with the text received; what is the asker's fault ends it."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from node.cli.api_client import keys_for, stream_chat
from node.cli.app import run_command_line
from node.cli.go_on import ROUNDS, ask_in_turn
from node.http_setup import make_certificate
from protocol.errors import BadInput, MfError, NotFound, Unavailable

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say"}], "max_tokens": 10, "temperature": 0.0}


class Node:
    """Says `words`, each of so many tokens, then ends or raises. `tells`: how many it has made so far."""

    def __init__(self, *words: str, error: MfError | None = None, each: int = 1, tells: bool = True) -> None:
        self.words, self.error, self.each, self.tells = words, error, each, tells
        self.asked: list[dict[str, Any]] = []

    def __call__(self, asked: dict[str, Any], on_event: Any) -> dict[str, Any]:
        self.asked.append(asked)
        for number, word in enumerate(self.words, 1):
            on_event({"event": "text", "text": word} | ({"tokens": number * self.each} if self.tells else {}))
        if self.error is not None:
            raise self.error
        return {"event": "finished", "reason": "stop", "completion_tokens": len(self.words) * self.each}


def go(*nodes: Node, **more: Any) -> tuple[str, dict[str, Any]]:
    got: list[str] = []
    end = ask_in_turn(nodes, ASKED | more, lambda event: got.append(event.get("text", "")))
    return "".join(got), end


def test_one_node_is_asked_once() -> None:
    node = Node("a", "b")
    assert go(node) == ("ab", {"event": "finished", "reason": "stop", "completion_tokens": 2, "continued": 0})
    assert node.asked == [ASKED]


def test_the_next_goes_on_with_what_came() -> None:
    dying, next_one = Node("one ", "two ", error=Unavailable("gone")), Node("three")
    text, end = go(dying, next_one)
    assert (text, end["continued"], end["completion_tokens"]) == ("one two three", 1, 3)
    [asked] = next_one.asked
    assert asked["continue_final"] is True
    assert asked["messages"] == [*ASKED["messages"], {"role": "assistant", "content": "one two "}]
    assert asked["max_tokens"] == 8


@pytest.mark.parametrize(("tells", "left", "whole"), [(True, 4, 7), (False, 8, 3)])
def test_a_text_of_several_tokens_counts_as_many(tells: bool, left: int, whole: int) -> None:
    """A guessed pass is one text; a node that tells no count is taken at its texts."""
    other = Node("three")
    _text, end = go(Node("one ", "two ", error=Unavailable("gone"), each=3, tells=tells), other)
    assert (other.asked[0]["max_tokens"], end["completion_tokens"]) == (left, whole)


def test_tokens_made_by_all_that_died_are_counted() -> None:
    nodes = [Node("a ", error=Unavailable("gone"), each=2), Node("b ", "c ", error=Unavailable("gone"), each=3), Node("d")]
    text, end = go(*nodes)
    assert (text, end["completion_tokens"], end["continued"]) == ("a b c d", 9, 2)
    assert [node.asked[0]["max_tokens"] for node in nodes] == [10, 8, 2]


@pytest.mark.parametrize("told", [-1, True, "9", None, 1 << 40, 1.5])
def test_a_count_that_cant_be_is_not_believed(told: Any) -> None:
    class Lying(Node):
        def __call__(self, asked: dict[str, Any], on_event: Any) -> dict[str, Any]:
            on_event({"event": "text", "text": "one ", "tokens": told})
            raise Unavailable("gone")

    other = Node("two")
    _text, end = go(Lying(), other)
    assert (other.asked[0]["max_tokens"], end["completion_tokens"]) == (9, 2)


def test_before_the_first_word_the_question_is_asked_as_it_was() -> None:
    node = Node("x")
    assert go(Node(error=Unavailable("gone")), node)[0] == "x"
    assert node.asked == [ASKED]


@pytest.mark.parametrize("error", [BadInput("no"), NotFound("no")])
def test_what_every_node_would_say_ends_it(error: MfError) -> None:
    other = Node("x")
    with pytest.raises(type(error)):
        go(Node(error=error), other)
    assert not other.asked


def test_it_ends_when_no_node_says_a_word() -> None:
    nodes = [Node(error=Unavailable("gone")) for _ in range(3)]
    with pytest.raises(Unavailable):
        go(*nodes)
    assert [len(node.asked) for node in nodes] == [ROUNDS] * 3


def test_nothing_is_asked_beyond_the_tokens_wanted() -> None:
    other = Node("x")
    with pytest.raises(Unavailable):
        go(Node("a", "b", error=Unavailable("gone")), other, max_tokens=2)
    assert not other.asked


@contextmanager
def server(lines: list[str], status: int = 200, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append({**json.loads(self.rfile.read(int(self.headers["Content-Length"]))), "key": self.headers["Authorization"]})
            self.send_response(status)
            self.end_headers()
            for line in lines:
                self.wfile.write(f"{line}\n\n".encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{httpd.server_port}", asked
    finally:
        httpd.shutdown()
        httpd.server_close()


def chunk(text: str, finish: str | None = None, **more: Any) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}], **more})


def test_a_streamed_reply_is_read_to_its_end() -> None:
    lines = [
        chunk("Par", usage={"completion_tokens": 1}),
        chunk("is", usage={"completion_tokens": 4}),
        chunk("!", usage=None),
        chunk("", "stop", usage={"prompt_tokens": 4, "completion_tokens": 6}),
        "data: [DONE]",
    ]
    got: list[tuple[str, int | None]] = []
    with server(lines) as (url, asked):
        asking = ASKED | {"continue_final": True, "precision": "bf16"}
        end = stream_chat(url, asking, lambda event: got.append((event["text"], event.get("tokens"))))
    assert got == [("Par", 1), ("is", 4), ("!", None)]
    assert (end["reason"], end["completion_tokens"]) == ("stop", 6)
    assert asked[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert asked[0]["continue_final_message"] is True
    assert asked[0]["stream"] is True


def test_how_long_it_took_is_told_in_seconds() -> None:
    stage = {"peer": "p", "first": 0, "end": 3, "prefill_ms": 20.0, "decode_ms": None, "wait_ms": 5, "measured_by": "p"}
    trace = {"timings_ms": {"first_token": 250.0, "total": 1_500.0}, "route": [{"peer": "p"}], "replaced": 1, "stages": [stage, "?"]}
    with server([chunk("Par", "stop", mf=trace), "data: [DONE]"]) as (url, _asked):
        end = stream_chat(url, ASKED, lambda event: None)
    assert (end["timings"], end["route"], end["replaced"]) == ({"first_token": 0.25, "total": 1.5}, [{"peer": "p"}], 1)
    assert end["stages"] == [{"peer": "p", "first": 0, "end": 3, "prefill": 0.02, "decode": None, "wait": 0.005, "measured_by": "p"}]


def test_a_nodes_own_certificate_is_trusted_when_it_is_given(tmp_path: Path) -> None:
    trusted, other, key = tmp_path / "http.crt", tmp_path / "other.crt", tmp_path / "http.key"
    for path, data in zip((key, trusted), make_certificate(["127.0.0.1"]), strict=True):
        path.write_bytes(data)
    other.write_bytes(make_certificate(["127.0.0.1"])[1])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(trusted, key)
    with server([chunk("Par", "stop"), "data: [DONE]"], tls=tls) as (url, asked):
        for cacert in (None, str(other)):
            with pytest.raises(Unavailable, match="isn't trusted: self-signed") as caught:
                stream_chat(url, ASKED, lambda event: None, cacert=cacert)
            assert "--cacert" in (caught.value.hint or "")
        assert not asked
        assert stream_chat(url, ASKED, lambda event: None, cacert=str(trusted))["reason"] == "stop"


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_that_holds_no_certificate_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"own\.pem: no certificate"):
        stream_chat("https://127.0.0.1:9", ASKED, lambda event: None, cacert=str(path))


@pytest.mark.parametrize("lines", [[chunk("Par")], [], ["data: nonsense"]])
def test_a_stream_that_breaks_off_is_unavailable(lines: list[str]) -> None:
    with server(lines) as (url, _asked), pytest.raises(Unavailable):
        stream_chat(url, ASKED, lambda event: None)


def test_a_refusal_keeps_its_class() -> None:
    told = [json.dumps({"error": {"message": "no such model", "code": "not_found"}})]
    with server(told, 404) as (url, _asked), pytest.raises(NotFound, match="no such model"):
        stream_chat(url, ASKED, lambda event: None)


def test_nobody_there_is_unavailable_and_nonsense_is_said() -> None:
    with pytest.raises(Unavailable):
        stream_chat("http://127.0.0.1:9", ASKED, lambda event: None)
    with pytest.raises(BadInput, match="--api"):
        stream_chat("ftp://x", ASKED, lambda event: None)
    with pytest.raises(BadInput, match="owner"):
        stream_chat("http://127.0.0.1:9", ASKED | {"precision": "fp32"}, lambda event: None)


KEY, TOKEN = "mf_live_abc", "mf_tok_abc"


def test_each_node_gets_its_own_key_and_an_api_key_never_goes_to_two() -> None:
    assert keys_for(["a"], [KEY]) == [KEY]
    assert keys_for(["a", "b"], [KEY, TOKEN]) == [KEY, TOKEN]
    assert keys_for(["a", "b"], [TOKEN]) == [TOKEN, TOKEN]
    assert keys_for(["a", "b"], []) == [None, None]
    for keys in ([KEY], [KEY, KEY, KEY], [TOKEN, TOKEN, TOKEN]):
        with pytest.raises(BadInput, match="keys for 2 nodes"):
            keys_for(["a", "b"], keys)
    for wrong in ("two words", "a\r\nX: y", "ü"):
        with pytest.raises(BadInput, match="--key") as caught:
            keys_for(["a"], [wrong])
        assert wrong not in str(caught.value)


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_chat_brings_its_key(way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MF_API_KEY", KEY if way == "environment" else "mf_live_another")
    with server([chunk("Paris", "stop"), "data: [DONE]"]) as (url, asked):
        given = ["--key", KEY] if way == "flag" else []
        assert run_command_line(["chat", "m", "hello", "--api", url, *given]) == 0
    assert asked[0]["key"] == f"Bearer {KEY}"
    assert "Paris" in capsys.readouterr().out


def test_without_a_key_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MF_API_KEY", raising=False)
    told = [json.dumps({"error": {"message": "this needs a credential with the scope inference", "code": "unauthorized"}})]
    with server(told, 401) as (url, asked):
        assert run_command_line(["chat", "m", "hello", "--api", url]) != 0
    said = capsys.readouterr().err
    assert asked[0]["key"] is None
    assert "needs a credential" in said
    assert "--key" in said
    assert "MF_API_KEY" in said
    assert "mf-node key create" in said
