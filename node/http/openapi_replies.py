"""What an operation answers, in the OpenAPI document: each status with its headers and its body, in JSON and, where it is heard, in XML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from node.http import replies
from node.http.openai_replies import OpenAIFailure
from node.http.operation import JSON, WHY, Operation
from node.http.xml import TYPE as XML

_RATE = "Only where the caller's allowance has a limit"
_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Request-Id": ("What this request is called in the node's log: as asked for by the same header, else of the node's choice", _TEXT),
    "X-RateLimit-Limit": (f"Requests that the allowance has in a window. {_RATE}", _COUNT),
    "X-RateLimit-Remaining": (f"Those left now. {_RATE}", _COUNT),
    "X-RateLimit-Reset": (f"Seconds until all are there again. {_RATE}", _COUNT),
    "X-RateLimit-Window": (f"Seconds of a window. {_RATE}", _COUNT),
    "Retry-After": ("Seconds after which to ask again", {"type": "integer", "minimum": 0}),
    "WWW-Authenticate": ("That a bearer is wanted", _TEXT),
    "Link": ("RFC 8288: the pages `first`, `prev`, `next` and `last`", _TEXT),
    "Location": ("Where to ask for it", _TEXT),
    "Range": ("The bytes of the file that are there: `bytes=0-` and the last one's number", _TEXT),
    "X-MF-Route": ("Where it ran: here, peer or pipeline, and each stage's peer and layers", _TEXT),
    "Server-Timing": ("Milliseconds of each part: plan, assemble, load, queue, prefill, decode, first_token, total", _TEXT),
    "Idempotency-Replayed": ("`true` where the reply is one that the same key got before", _TEXT),
}
_EVERY = ("X-Request-Id", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Window")
_WITH = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_ROOT = {"xml": {"name": "response"}}

Schemas = dict[Any, dict[str, Any]]


def header_components() -> dict[str, Any]:
    return {name: {"description": about, "schema": schema} for name, (about, schema) in HEADERS.items()}


def failure_components(schemas: Schemas, operations: Iterable[Operation]) -> dict[str, Any]:
    """Every status of failure of every API, once."""
    told: dict[str, Any] = {}
    for operation in operations:
        failed = _both(operation, schemas[failure_of(operation)])
        for status in operation.failures:
            told[_failure_name(operation, status)] = _response(WHY[status], failed, _WITH.get(status, ()))
    return dict(sorted(told.items()))


def failure_of(operation: Operation) -> Any:
    return operation.failure or (OpenAIFailure if operation.path.startswith("/v1/") else replies.Failure)


def _failure_name(operation: Operation, status: int) -> str:
    """`NodeFailure…` outside the APIs, where XML isn't heard."""
    plain = failure_of(operation) is replies.Failure and not operation.xml
    return f"{'Node' if plain else ''}{failure_of(operation).__name__}{status}"


def responses(schemas: Schemas, operation: Operation) -> dict[str, Any]:
    """By status, the good ones first."""
    good = (*operation.headers, *(("Idempotency-Replayed",) if operation.idempotent else ()))
    done = {str(operation.status): _response("Done", _content(schemas, operation), good)}
    if operation.later is not None:
        accepted = _both(operation, _enveloped(schemas, operation, operation.later))
        done["202"] = _response("Begun: where to ask for it", accepted, (*good, "Location"))
    return done | {str(status): {"$ref": f"#/components/responses/{_failure_name(operation, status)}"} for status in operation.failures}


def _response(about: str, content: dict[str, Any], headers: tuple[str, ...]) -> dict[str, Any]:
    told = {name: {"$ref": f"#/components/headers/{name}"} for name in dict.fromkeys((*_EVERY, *headers))}
    return {"description": about, "headers": told, "content": content}


def _content(schemas: Schemas, operation: Operation) -> dict[str, Any]:
    if operation.media != JSON:
        return {operation.media: {"schema": {"type": "string"}}}
    content = _both(operation, _enveloped(schemas, operation, operation.reply))
    if operation.events:
        content[operation.streams] = {"schema": {"description": operation.events}}
    return content


def _both(operation: Operation, schema: dict[str, Any]) -> dict[str, Any]:
    if not operation.xml:
        return {JSON: {"schema": schema}}
    return {JSON: {"schema": schema}, XML: {"schema": schema | _ROOT}}


def _enveloped(schemas: Schemas, operation: Operation, reply: Any) -> dict[str, Any]:
    inner = schemas[reply] if reply is not None else {"type": "object"}
    if not operation.wrapped:
        return dict(inner)
    properties = {"status": {"const": "success"}, "data": inner}
    return {"type": "object", "properties": properties, "required": ["status", "data"]}
