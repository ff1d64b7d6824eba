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


class Label(msgspec.Struct, kw_only=True):
    """`score` as the model's own config has it: of one label that holds, of each by itself, or a measure."""

    label: str
    score: float


class Result(msgspec.Struct, kw_only=True):
    """`text`, `tokens_generated` and `finish_reason` of a model that writes; `labels` alone, the greatest score first, of one for
    text-classification.
    """

    text: str | UnsetType = UNSET
    tokens_generated: int | UnsetType = UNSET
    finish_reason: str | UnsetType = UNSET
    labels: list[Label] | UnsetType = UNSET


class Provider(msgspec.Struct, kw_only=True):
    """Where it ran: `kind` here, peer or pipeline; each stage's peer and layers [first, end); how many were replaced on the way."""

    kind: str
    route: list[dict[str, Any]]
    replaced: int


class StageFigures(msgspec.Struct, kw_only=True):
    """Milliseconds that the stage at `peer` computed of the prompt and of the tokens, and that steps waited there for their turn, as
    `measured_by` says; null where it didn't tell.
    """

    peer: str
    first: int
    end: int
    prefill_ms: float | None
    decode_ms: float | None
    wait_ms: float | None
    measured_by: str | None


class Metadata(msgspec.Struct, kw_only=True):
    """`timings_ms` as this node measured them; `network` is what no stage accounts for between the first token and the last.
    `reused_tokens` of the prompt were computed for an earlier reply of the same caller.
    """

    execution_time_ms: float | None
    tokens_per_second: float | None
    compute_provider: Provider
    model_load_time_ms: float
    inference_time_ms: float | None
    timings_ms: dict[str, float] = msgspec.field(default_factory=dict)
    stages: list[StageFigures] = msgspec.field(default_factory=list)
    reused_tokens: int = 0
    cache_hit: bool = False


class Inference(msgspec.Struct, kw_only=True):
    inference_id: str
    model_id: str
    result: Result
    usage: Usage
    timestamp: str
    metadata: Metadata | UnsetType = UNSET


class Trace(msgspec.Struct, kw_only=True):
    """`mf` in a stream's last event: the final route, the milliseconds of each part, and what each stage told of its own."""

    kind: str
    route: list[dict[str, Any]]
    replaced: int
    timings_ms: dict[str, float]
    stages: list[StageFigures] = msgspec.field(default_factory=list)
    reused_tokens: int = 0


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
    ms, stages = timings_ms(finished), stage_figures(finished)
    return Trace(
        kind=planned.kind, route=finished.route, replaced=finished.replaced, timings_ms=ms, stages=stages, reused_tokens=finished.reused
    )


def stage_figures(finished: Finished) -> list[StageFigures]:
    """Of each stage of the final route that is known of."""
    return [
        StageFigures(
            peer=one.peer,
            first=one.first,
            end=one.end,
            prefill_ms=_ms(one.prefill),
            decode_ms=_ms(one.decode),
            wait_ms=_ms(one.wait),
            measured_by=None if one.decode is None else one.peer,
        )
        for one in finished.stages
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def metadata_of(planned: Planned, finished: Finished) -> Metadata:
    """Loading is fetching the weights and mapping them; inference is the rest after the plan."""
    ms = timings_ms(finished)
    loading = round(ms.get("assemble", 0.0) + ms.get("load", 0.0), 3)
    total = ms.get("total")
    running = None if total is None else round(max(0.0, total - loading - ms.get("plan", 0.0)), 3)
    return Metadata(
        execution_time_ms=total,
        tokens_per_second=round(finished.completion_tokens * 1000 / running, 2) if running and finished.completion_tokens else None,
        compute_provider=Provider(kind=planned.kind, route=finished.route, replaced=finished.replaced),
        model_load_time_ms=loading,
        inference_time_ms=running,
        timings_ms=ms,
        stages=stage_figures(finished),
        reused_tokens=finished.reused,
    )
