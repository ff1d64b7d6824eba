"""The bodies that this node answers with, so that the OpenAPI document and the code can't differ."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from node.gateway import Finished, ModelInfo, Planned
from node.http.generation import timings_ms


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Result(msgspec.Struct, kw_only=True):
    text: str
    tokens_generated: int
    finish_reason: str


class Provider(msgspec.Struct, kw_only=True):
    """Where it ran: `kind` here, peer or pipeline; each stage's peer and layers [first, end); how many were replaced on the way."""

    kind: str
    route: list[dict[str, Any]]
    replaced: int


class Metadata(msgspec.Struct, kw_only=True):
    execution_time_ms: float | None
    tokens_per_second: float | None
    compute_provider: Provider
    model_load_time_ms: float
    inference_time_ms: float | None
    cache_hit: bool = False


class Inference(msgspec.Struct, kw_only=True):
    inference_id: str
    model_id: str
    result: Result
    usage: Usage
    timestamp: str
    metadata: Metadata | UnsetType = UNSET


class Trace(msgspec.Struct, kw_only=True):
    """`mf` in a stream's last event: the final route and the milliseconds of each part."""

    kind: str
    route: list[dict[str, Any]]
    replaced: int
    timings_ms: dict[str, float]


class StreamStart(msgspec.Struct, kw_only=True):
    inference_id: str
    model_id: str
    prompt_tokens: int
    compute_provider: Provider
    timestamp: str


class StreamToken(msgspec.Struct, kw_only=True):
    text: str
    cumulative_text: str
    tokens_generated: int


class StreamFinish(Inference, kw_only=True):
    mf: Trace


class Success(msgspec.Struct, kw_only=True):
    """Every good reply of /api/v1."""

    data: Any
    status: Literal["success"] = "success"


class ErrorDetail(msgspec.Struct, kw_only=True):
    code: str
    message: str
    details: dict[str, Any]
    timestamp: str
    request_id: str


class Failure(msgspec.Struct, kw_only=True):
    """Every failed reply of /api/v1; `details.suggestion` says what to do."""

    error: ErrorDetail
    status: Literal["error"] = "error"


class OpenAIErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIFailure(msgspec.Struct, kw_only=True):
    error: OpenAIErrorDetail


class OpenAIModel(msgspec.Struct, kw_only=True):
    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class OpenAIModels(msgspec.Struct, kw_only=True):
    data: list[OpenAIModel]
    object: Literal["list"] = "list"


class Embedding(msgspec.Struct, kw_only=True):
    """`embedding` numbers, or base64 of little-endian fp32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingsUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    model: str
    data: list[Embedding]
    usage: EmbeddingsUsage
    object: Literal["list"] = "list"


class AssistantMessage(msgspec.Struct, kw_only=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(msgspec.Struct, kw_only=True):
    message: AssistantMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, kw_only=True):
    delta: Delta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """`usage` is on every chunk, null but on the last, where the client asked for it; `mf` is on the last."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET
    mf: Trace | UnsetType = UNSET


def openai_model(info: ModelInfo) -> OpenAIModel:
    return OpenAIModel(id=info.name or info.model_id, created=int(info.created_at or 0), owned_by=info.publisher or "unknown")


def usage_of(finished: Finished) -> Usage:
    prompt, made = finished.prompt_tokens, finished.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=made, total_tokens=prompt + made)


def trace_of(planned: Planned, finished: Finished) -> Trace:
    return Trace(kind=planned.kind, route=finished.route, replaced=finished.replaced, timings_ms=timings_ms(finished))


def metadata_of(planned: Planned, finished: Finished) -> Metadata:
    """Loading is fetching the weights and mapping them; inference is the rest after the plan."""
    ms = timings_ms(finished)
    loading = round(ms.get("assemble", 0.0) + ms.get("load", 0.0), 3)
    total = ms.get("total")
    running = None if total is None else round(max(0.0, total - loading - ms.get("plan", 0.0)), 3)
    return Metadata(
        execution_time_ms=total,
        tokens_per_second=round(finished.completion_tokens * 1000 / running, 2) if running else None,
        compute_provider=Provider(kind=planned.kind, route=finished.route, replaced=finished.replaced),
        model_load_time_ms=loading,
        inference_time_ms=running,
    )
