"""The command line's way to a node by its HTTP address: one streamed chat reply, which another node can go on with."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from protocol.errors import BadInput, MfError, Unavailable, error_from_wire

Event = Callable[[dict[str, Any]], None]
CONNECT_SECONDS = 10.0
SILENCE = 60.0
_MOST_LINE = 1 << 20


def stream_chat(api: str, asked: dict[str, Any], on_event: Event) -> dict[str, Any]:
    """Asks `api` (http://HOST:PORT) as the owner's socket is asked; the same events and last document.

    `Unavailable` when the node isn't there or goes in the middle; its own error when it says one.
    """
    url = urlsplit(api if "//" in api else f"http://{api}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise BadInput(f"--api {api[:80]!r} is not http://HOST:PORT")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=CONNECT_SECONDS)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(_body(asked)), {"Content-Type": "application/json"})
        if connection.sock is not None:
            connection.sock.settimeout(SILENCE)
        reply = connection.getresponse()
        if reply.status != 200:
            raise _refused(api, reply.status, reply.read(_MOST_LINE))
        return _read(api, reply, on_event)
    except (OSError, http.client.HTTPException, ssl.SSLError) as error:
        raise Unavailable(f"{api} doesn't answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _body(asked: dict[str, Any]) -> dict[str, Any]:
    names = ("model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop")
    body = {name: asked[name] for name in names if asked.get(name) not in (None, [])}
    if asked.get("precision") not in (None, "bf16") or asked.get("force"):
        raise BadInput("--precision and --force are the owner's: they can't be asked for at --api")
    if asked.get("continue_final"):
        body["continue_final_message"] = True
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def _refused(api: str, status: int, raw: bytes) -> MfError:
    try:
        told = json.loads(raw)["error"]
        return error_from_wire({"code": told.get("code") or "unavailable", "message": f"{api}: {told['message']}"})
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unavailable(f"{api} answered with status {status}")


def _read(api: str, reply: http.client.HTTPResponse, on_event: Event) -> dict[str, Any]:
    end: dict[str, Any] = {"event": "finished", "timings": {}, "route": [], "replaced": 0}
    for event in _events(reply):
        if "error" in event:
            told = event["error"]
            raise error_from_wire({"code": told.get("code") or "unavailable", "message": f"{api}: {told.get('message')}"})
        for choice in event.get("choices") or []:
            if choice.get("delta", {}).get("content"):
                on_event({"event": "text", "text": choice["delta"]["content"]})
            end["reason"] = choice.get("finish_reason") or end.get("reason")
        usage, trace = event.get("usage") or {}, event.get("mf") or {}
        end |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if name in usage}
        end |= {name: trace[name] for name in ("timings", "route", "replaced") if name in trace}
    if end.get("reason") is None:
        raise Unavailable(f"{api} left in the middle of the reply")
    return end


def _events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := reply.readline(_MOST_LINE):
        data = line.decode(errors="replace").strip()
        if data == "data: [DONE]":
            return
        if data.startswith("data:"):
            try:
                event = json.loads(data[5:])
            except ValueError:
                raise Unavailable("the node sent an event that isn't JSON") from None
            if isinstance(event, dict):
                yield event
