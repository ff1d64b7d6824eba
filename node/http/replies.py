"""The bodies that this node answers with, so that the OpenAPI document and the code can't differ."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from node.gateway import Finished, Planned
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
