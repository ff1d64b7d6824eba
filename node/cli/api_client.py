"""The command line's way to a node by its HTTP address: one streamed chat reply, which another node can go on with."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from protocol.errors import BadInput, MfError, Unavailable, error_from_wire

Event = Callable[[dict[str, Any]], None]
CONNECT_SECONDS = 10.0
SILENCE = 60.0
_MOST_LINE = 1 << 20
WANTS_KEY = "give --key or set MF_API_KEY; `mf-node key create` makes its owner one, POST /api/v1/auth/register there everybody else"


def keys_for(apis: Sequence[str], keys: Sequence[str]) -> list[str | None]:
    """Which key each node is asked with: one each, in their order, or one token that all of them take.

    An API key is good at its home alone, and whoever else gets to see it could use it there: `BadInput` before it goes to several.
    """
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise BadInput("--key: not an API key or token", hint="paste it whole, without spaces")
    if len(keys) == len(apis):
        return list(keys)
    if not keys:
        return [None] * len(apis)
    if len(keys) > 1 or keys[0].startswith("mf_live_"):
        raise BadInput(
            f"{len(keys)} keys for {len(apis)} nodes: an API key is good at its home alone",
            hint="give --key once for each --api, in their order, or the token of a swarm-wide key",
        )
    return [keys[0]] * len(apis)


def stream_chat(api: str, asked: dict[str, Any], on_event: Event, key: str | None = None, cacert: str | None = None) -> dict[str, Any]:
    """Asks `api` (http://HOST:PORT) as the owner's socket is asked; the same events and last document.

    `cacert`: a PEM file whose certificates are trusted, and no others; None: those of this machine. `Unavailable` when the node isn't there
    or goes in the middle; its own error when it says one.
    """
    url = urlsplit(api if "//" in api else f"http://{api}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise BadInput(f"--api {api[:80]!r} is not http://HOST:PORT")
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=CONNECT_SECONDS)
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=CONNECT_SECONDS, context=_trusting(cacert))
    try:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request("POST", "/v1/chat/completions", json.dumps(_body(asked)), headers)
        if connection.sock is not None:
            connection.sock.settimeout(SILENCE)
        reply = connection.getresponse()
        if reply.status != 200:
            raise _refused(api, reply.status, reply.read(_MOST_LINE))
        return _read(api, reply, on_event)
    except ssl.SSLCertVerificationError as error:
        hint = "--cacert FILE trusts a certificate; a node with --tls auto keeps its own in its data directory as http.crt"
        raise Unavailable(f"{api} shows a certificate that isn't trusted: {error.verify_message}", hint=hint) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{api} doesn't answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _trusting(cacert: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=cacert)
    except OSError as error:
        raise BadInput(f"--cacert {cacert}: no certificate can be read from it ({error.strerror or error})") from error


def _body(asked: dict[str, Any]) -> dict[str, Any]:
    names = ("model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop")
    body = {name: asked[name] for name in names if asked.get(name) not in (None, [])}
    if asked.get("precision") not in (None, "bf16") or asked.get("force"):
        raise BadInput("--precision and --force are the owner's: they can't be asked for at --api")
    if asked.get("continue_final"):
        body["continue_final_message"] = True
    return body | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def _refused(api: str, status: int, raw: bytes) -> MfError:
    try:
        told = json.loads(raw)["error"]
        hint = WANTS_KEY if status == 401 else None
        return error_from_wire({"code": told.get("code") or "unavailable", "message": f"{api}: {told['message']}", "hint": hint})
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unavailable(f"{api} answered with status {status}")


def _read(api: str, reply: http.client.HTTPResponse, on_event: Event) -> dict[str, Any]:
    end: dict[str, Any] = {"event": "finished", "timings": {}, "route": [], "replaced": 0, "reused": 0, "stages": []}
    for event in _events(reply):
        if "error" in event:
            told = event["error"]
            raise error_from_wire({"code": told.get("code") or "unavailable", "message": f"{api}: {told.get('message')}"})
        usage, trace = event.get("usage") or {}, event.get("mf") or {}
        so_far = {"tokens": usage["completion_tokens"]} if "completion_tokens" in usage else {}
        for choice in event.get("choices") or []:
            if choice.get("delta", {}).get("content"):
                on_event({"event": "text", "text": choice["delta"]["content"]} | so_far)
            end["reason"] = choice.get("finish_reason") or end.get("reason")
        end |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if name in usage}
        end |= {name: trace[name] for name in ("route", "replaced") if name in trace}
        end["reused"] = reused if type(reused := trace.get("reused_tokens")) is int else end["reused"]
        if isinstance(parts := trace.get("timings_ms"), dict):
            end["timings"] = {name: ms / 1000 for name, ms in parts.items() if isinstance(ms, int | float)}
        if isinstance(stages := trace.get("stages"), list):
            end["stages"] = [_stage(stage) for stage in stages if isinstance(stage, dict)]
    if end.get("reason") is None:
        raise Unavailable(f"{api} left in the middle of the reply")
    return end


def _stage(told: dict[str, Any]) -> dict[str, Any]:
    """Its figures in seconds, as the owner's socket has them."""
    seconds = {part: told.get(f"{part}_ms") for part in ("prefill", "decode", "wait")}
    figures = {part: ms / 1000 if isinstance(ms, int | float) else None for part, ms in seconds.items()}
    return {name: told.get(name) for name in ("peer", "first", "end", "measured_by")} | figures


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
