"""A chat whose node dies goes on at the next one with the text received; what is the asker's fault ends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from node.cli.api_client import stream_chat
from node.cli.go_on import ROUNDS, ask_in_turn
from protocol.errors import BadInput, MfError, NotFound, Unavailable

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say"}], "max_tokens": 10, "temperature": 0.0}


class Node:
    """Says `words`, then ends or raises."""

    def __init__(self, *words: str, error: MfError | None = None) -> None:
        self.words, self.error = words, error
        self.asked: list[dict[str, Any]] = []

    def __call__(self, asked: dict[str, Any], on_event: Any) -> dict[str, Any]:
        self.asked.append(asked)
        for word in self.words:
            on_event({"event": "text", "text": word})
        if self.error is not None:
            raise self.error
        return {"event": "finished", "reason": "stop", "completion_tokens": len(self.words)}


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
def server(lines: list[str], status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            for line in lines:
                self.wfile.write(f"{line}\n\n".encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", asked
    finally:
        httpd.shutdown()
        httpd.server_close()


def chunk(text: str, finish: str | None = None, **more: Any) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}], **more})


def test_a_streamed_reply_is_read_to_its_end() -> None:
    lines = [chunk("Par"), chunk("is"), chunk("", "stop", usage={"prompt_tokens": 4, "completion_tokens": 2}), "data: [DONE]"]
    got: list[str] = []
    with server(lines) as (url, asked):
        end = stream_chat(url, ASKED | {"continue_final": True, "precision": "bf16"}, lambda event: got.append(event["text"]))
    assert got == ["Par", "is"]
    assert (end["reason"], end["completion_tokens"]) == ("stop", 2)
    assert asked[0]["continue_final_message"] is True
    assert asked[0]["stream"] is True


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
