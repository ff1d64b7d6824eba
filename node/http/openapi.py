"""The OpenAPI 3.1 document, made from the same structs that read and write the bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

from node.http import (
    api_v1_models,
    api_v1_operations,
    job_schemas,
    model_replies,
    ollama_operations,
    ollama_replies,
    openai_operations,
    replies,
    schemas,
)
from node.http.access import needed
from node.http.context import SETTINGS, json_reply
from node.http.idempotency import HEADER as IDEMPOTENCY_KEY
from node.http.openai_replies import OpenAIFailure
from node.http.openapi_replies import failure_components, header_components, responses
from node.http.operation import ASK, JSON, ONE, RAN, Operation
from node.version import VERSION
from protocol.tokens import PUBLIC_SCOPES

_REF = "#/components/schemas/{name}"
_ABOUT = (
    "Every node of the swarm answers all of this: its own API, and OpenAI's, so that programs made for that one work unchanged. "
    "A model is named `publisher/name@version`, by a bare name where it can mean one only, or by its id. "
    "A credential, where this node wants one, goes into the header `Authorization`: a key or token as `Bearer`, or a request signed by a "
    "key as `MF1`. `/api/v1` answers in XML who asks `Accept: application/xml`. Fields that aren't told here, in bodies and queries, are "
    "refused."
)
FORM = "multipart/form-data"
_BYTES = {"type": "string", "format": "binary"}
_SCHEMES = {
    "credential": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "an API key `mf_live_…` at its home, or a token `mf_tok_…` made for this node",
    },
    "signed": {
        "type": "http",
        "scheme": "MF1",
        "description": "A request signed by an API key, which doesn't travel itself: base64url of a map of `key` (its Ed25519 public key), "
        "`time` (Unix seconds, ± 300), `nonce` (16 random bytes, each good once), `signature` over this node's PeerID, the method, the "
        "path with its query as sent, BLAKE3 of the body, time and nonce, and, away from the key's home, `links`. Byte by byte: "
        "PROTOCOL.md, SignedRequest.",
    },
}
_CREDENTIALS: list[dict[str, list[str]]] = [{name: []} for name in _SCHEMES]
_IDEMPOTENCY = {
    "name": IDEMPOTENCY_KEY,
    "in": "header",
    "required": False,
    "description": "The same request sent again under the same key within an hour is answered as before, not run again. Not with a stream",
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
}
_CONTENT_RANGE = {
    "name": "Content-Range",
    "in": "header",
    "required": False,
    "description": "Which bytes of the file the body has: `bytes first-last/total`, total `*` where it isn't known. Without it: all",
    "schema": {"type": "string", "pattern": "^bytes [0-9]{1,15}-[0-9]{1,15}/([0-9]{1,15}|\\*)$"},
}
_TAGS = (
    ("OpenAI's API", r"/v1/", "What OpenAI's clients ask, unchanged: set their base address to this node's `/v1`."),
    ("Models", r"/api/v1/(models|inference)", "Finding models, running them, and where they would run."),
    ("Accounts", r"/api/v1/(auth|users|audit)", "An account has one node as its home; keys and tokens made of it are good at others too."),
    ("Ollama's API", r"/api/(?!v1/)", "What Ollama's clients ask, as far as a swarm has it."),
    ("This node", r"/", "How it and its swarm are."),
)
"""Groups of operations in their order: name, the paths (the first that fits), what they are for."""


OPERATIONS = [
    Operation("get", "/health", "That the node answers, and what its last end-to-end probe saw"),
    *api_v1_operations.OPERATIONS,
    Operation(
        "get",
        "/api/v1/models",
        "Models the swarm knows",
        model_replies.ModelPage,
        query=api_v1_models.Query,
        wrapped=True,
        headers=("Link",),
    ),
    Operation("get", "/api/v1/models/{id}", "One model", model_replies.ModelDetail, wrapped=True, errors=ONE),
    Operation(
        "get",
        "/api/v1/models/{id}/plan",
        "Where a model would run, why, and how fast, without running it",
        dict[str, Any],
        query=schemas.PlanQuery,
        wrapped=True,
        errors=ONE,
    ),
    Operation(
        "post",
        "/api/v1/models/{id}/inference",
        "Run a model: its text, or the labels of one for text-classification; with parameters.stream, of a text alone, as events",
        replies.Inference,
        schemas.InferenceRequest,
        example={"input": {"text": "The capital of France is", "max_tokens": 32}},
        events="events `start` (StreamStart), `queued` (position), `token` (StreamToken), `finish` (StreamFinish) or `error` (Failure)",
        later=job_schemas.Accepted,
        wrapped=True,
        errors=ASK,
        idempotent=True,
        headers=RAN,
    ),
    Operation("get", "/api/v1/system/health", "How each part of the node is", wrapped=True, reply=dict[str, Any]),
    Operation("get", "/api/v1/system/swarm", "Who is in the swarm", wrapped=True, reply=dict[str, Any]),
    *openai_operations.OPERATIONS,
    Operation("get", "/metrics", "Figures for Prometheus", media="text/plain"),
    Operation("get", "/openapi.json", "This document", dict[str, Any]),
    Operation("get", "/docs", "This document, to read and try", media="text/html"),
    Operation("get", "/", "The node's page", media="text/html"),
]
_EVENT_TYPES = [replies.StreamStart, replies.StreamToken, replies.StreamFinish, *openai_operations.EVENT_TYPES]


def _types(operations: Sequence[Operation]) -> list[Any]:
    used = [kind for operation in operations for kind in (operation.reply, operation.body, operation.later) if kind is not None]
    queries = [operation.query for operation in operations if operation.query is not None]
    failures = [replies.Failure, OpenAIFailure, ollama_replies.OllamaFailure]
    return list(dict.fromkeys([*used, *_EVENT_TYPES, replies.Success, *failures, *queries]))


def _parameters(components: dict[str, Any], operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", operation.path)
    told: list[dict[str, Any]] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if operation.query is not None:
        fields = components[operation.query.__name__]["properties"]
        told += [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()]
    if operation.idempotent:
        told.append(_IDEMPOTENCY)
    if operation.ranged:
        told.append(_CONTENT_RANGE)
    return told


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    """Nothing is needed where this node's listener may let everybody in."""
    scope = needed(operation.method.upper(), operation.path)
    return _CREDENTIALS if scope is not None and scope not in PUBLIC_SCOPES else [{}, *_CREDENTIALS]


def _body(schemas_by_type: dict[Any, Any], operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.body is not None:
        example = {"example": operation.example} if operation.example else {}
        content[JSON] = {"schema": schemas_by_type[operation.body], **example}
    if operation.body_media == FORM:
        parts = {"metadata": schemas_by_type[operation.body], "file": {"type": "array", "items": _BYTES}}
        content[FORM] = {"schema": {"type": "object", "properties": parts, "required": ["metadata"]}}
    elif operation.body_media != JSON:
        content[operation.body_media] = {"schema": _BYTES}
    return {"requestBody": {"required": True, "content": content}} if content else {}


def _operation(schemas_by_type: dict[Any, Any], components: dict[str, Any], operation: Operation) -> dict[str, Any]:
    tag = next(name for name, paths, _about in _TAGS if re.match(paths, operation.path))
    parameters = _parameters(components, operation)
    return {
        "tags": [tag],
        "summary": operation.summary,
        "security": _security(operation),
        **({"parameters": parameters} if parameters else {}),
        **_body(schemas_by_type, operation),
        "responses": responses(schemas_by_type, operation),
    }


@cache
def document(with_ollama: bool = False) -> dict[str, Any]:
    """The whole document, as plain values; Ollama's paths only where they are answered."""
    operations = list(operations_by_route(with_ollama).values())
    types = _types(operations)
    listed, components = msgspec.json.schema_components(types, ref_template=_REF)
    schemas_by_type = dict(zip(types, listed, strict=True))
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(schemas_by_type, components, operation)
    info = {
        "title": "ModelFloat node",
        "version": VERSION,
        "description": _ABOUT,
        "license": {"name": "MIT", "identifier": "MIT"},
    }
    used = {operation["tags"][0] for methods in paths.values() for operation in methods.values()}
    return {
        "openapi": "3.1.0",
        "info": info,
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": about} for name, _paths, about in _TAGS if name in used],
        "security": [{}, *_CREDENTIALS],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": failure_components(schemas_by_type, operations),
            "headers": header_components(),
            "securitySchemes": _SCHEMES,
        },
    }


@cache
def operations_by_route(with_ollama: bool = False) -> dict[tuple[str, str], Operation]:
    """Operations by method (capitals) and path template."""
    operations = [*OPERATIONS, *(ollama_operations.OPERATIONS if with_ollama else ())]
    return {(operation.method.upper(), operation.path): operation for operation in operations}


async def serve(request: web.Request) -> web.StreamResponse:
    return json_reply(document(request.app[SETTINGS].ollama))


ROUTES = [web.get("/openapi.json", serve)]
