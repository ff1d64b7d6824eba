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
    model_replies,
    ollama_operations,
    ollama_replies,
    openai_operations,
    replies,
    schemas,
)
from node.http.context import SETTINGS, json_reply
from node.http.openai_replies import OpenAIFailure
from node.http.operation import ASK, JSON, ONE, WHY, Operation
from node.version import VERSION

_REF = "#/components/schemas/{name}"
_ABOUT = (
    "Every node of the swarm answers all of this: its own API, and OpenAI's, so that programs made for that one work unchanged. "
    "A model is named `publisher/name@version`, by a bare name where it can mean one only, or by its id. "
    "A credential, where this node wants one, goes into the header `Authorization: Bearer`."
)
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
    Operation("get", "/api/v1/models", "Models the swarm knows", model_replies.ModelPage, query=api_v1_models.Query, wrapped=True),
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
        "Run a model; with parameters.stream as the events start, token and finish",
        replies.Inference,
        schemas.InferenceRequest,
        example={"input": {"text": "The capital of France is", "max_tokens": 32}},
        events="events `start` (StreamStart), `token` (StreamToken), `finish` (StreamFinish) or `error` (Failure)",
        wrapped=True,
        errors=ASK,
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
    used = [kind for operation in operations for kind in (operation.reply, operation.body) if kind is not None]
    queries = [operation.query for operation in operations if operation.query is not None]
    failures = [replies.Failure, OpenAIFailure, ollama_replies.OllamaFailure]
    return list(dict.fromkeys([*used, *_EVENT_TYPES, replies.Success, *failures, *queries]))


def _schema_of(schemas_by_type: dict[Any, Any], operation: Operation) -> dict[str, Any]:
    inner = schemas_by_type[operation.reply] if operation.reply is not None else {"type": "object"}
    if not operation.wrapped:
        return dict(inner)
    properties = {"status": {"const": "success"}, "data": inner}
    return {"type": "object", "properties": properties, "required": ["status", "data"]}


def _replies(schemas_by_type: dict[Any, Any], operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media: {"schema": {"type": "string"}}}
    if operation.media == JSON:
        content = {JSON: {"schema": _schema_of(schemas_by_type, operation)}}
    if operation.events:
        content[operation.streams] = {"schema": {"type": "string", "description": operation.events}}
    shape = operation.failure or (OpenAIFailure if operation.path.startswith("/v1/") else replies.Failure)
    failed = {JSON: {"schema": schemas_by_type[shape]}}
    failures = {str(status): {"description": WHY[status], "content": failed} for status in sorted(operation.errors)}
    return {str(operation.status): {"description": "Done", "content": content}} | failures


def _parameters(components: dict[str, Any], operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", operation.path)
    named: list[dict[str, Any]] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if operation.query is None:
        return named
    fields = components[operation.query.__name__]["properties"]
    return named + [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()]


def _operation(schemas_by_type: dict[Any, Any], components: dict[str, Any], operation: Operation) -> dict[str, Any]:
    tag = next(name for name, paths, _about in _TAGS if re.match(paths, operation.path))
    shown: dict[str, Any] = {"tags": [tag], "summary": operation.summary, "responses": _replies(schemas_by_type, operation)}
    parameters = _parameters(components, operation)
    if parameters:
        shown["parameters"] = parameters
    if operation.body is not None:
        example = {"example": operation.example} if operation.example else {}
        shown["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas_by_type[operation.body], **example}}}
    if operation.body_media != JSON:
        bytes_of = {operation.body_media: {"schema": {"type": "string", "format": "binary"}}}
        shown.setdefault("requestBody", {"required": True, "content": {}})["content"].update(bytes_of)
    return shown


@cache
def document(with_ollama: bool = False) -> dict[str, Any]:
    """The whole document, as plain values; Ollama's paths only where they are answered."""
    operations = [*OPERATIONS, *(ollama_operations.OPERATIONS if with_ollama else ())]
    types = _types(operations)
    found, components = msgspec.json.schema_components(types, ref_template=_REF)
    schemas_by_type = dict(zip(types, found, strict=True))
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
        "security": [{}, {"credential": []}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"credential": {"type": "http", "scheme": "bearer"}}},
    }


async def serve(request: web.Request) -> web.StreamResponse:
    return json_reply(document(request.app[SETTINGS].ollama))


ROUTES = [web.get("/openapi.json", serve)]
