"""Ollama's paths in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from node.http import ollama_replies as replies
from node.http import ollama_schemas as schemas
from node.http.operation import ASK, ONE, RAN, Operation

_SAME: dict[str, Any] = {"failure": replies.OllamaFailure}
_ASKED: dict[str, Any] = {
    **_SAME,
    "errors": ASK,
    "headers": RAN,
    "streams": "application/x-ndjson",
    "events": "Done, a line each; the last has `done` true",
}

OPERATIONS = [
    Operation("get", "/api/version", "The node's version", replies.Version, **_SAME),
    Operation("get", "/api/tags", "Models, in Ollama's shape", replies.Tags, **_SAME),
    Operation("get", "/api/ps", "Models of which stages are loaded here", replies.Running, **_SAME),
    Operation("post", "/api/show", "One model, in Ollama's shape", replies.Shown, schemas.ShowRequest, errors=ONE, **_SAME),
    Operation("post", "/api/chat", "A chat's next message, in Ollama's shape", replies.Done, schemas.ChatRequest, **_ASKED),
    Operation("post", "/api/generate", "An answer to a prompt, in Ollama's shape", replies.Done, schemas.GenerateRequest, **_ASKED),
]
