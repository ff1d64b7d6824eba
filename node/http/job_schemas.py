"""Bodies of async, batch and compare."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from node.http.replies import Inference, Label, Provider
from node.http.schemas import InferenceInput, Name


class BatchItem(InferenceInput, forbid_unknown_fields=True, frozen=True, kw_only=True):
    id: Annotated[str, Meta(min_length=1, max_length=128)]


class BatchParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`concurrency`: how many of them at once."""

    include_metadata: bool = True
    timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    concurrency: Annotated[int, Meta(ge=1, le=32)] = 8


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    inputs: Annotated[list[BatchItem], Meta(min_length=1, max_length=256)]
    parameters: BatchParameters = BatchParameters()


class CompareParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] | None = None


class CompareRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    models: Annotated[list[Name], Meta(min_length=2, max_length=8)]
    input: InferenceInput
    parameters: CompareParameters = CompareParameters()


class Accepted(msgspec.Struct, kw_only=True):
    """Ask GET `status_url`; DELETE cancels."""

    inference_id: str
    status: Literal["running"]
    status_url: str


class JobState(msgspec.Struct, kw_only=True):
    """`result` as POST /inference would have given it; kept for an hour."""

    inference_id: str
    status: str
    model: str
    created_at: str
    result: Inference | None = None
    error: dict[str, Any] | None = None


class BatchOutcome(msgspec.Struct, kw_only=True):
    id: str
    status: Literal["success", "error"]
    result: Inference | None = None
    error: dict[str, Any] | None = None


class BatchReply(msgspec.Struct, kw_only=True):
    """`parallel_efficiency`: the items' own times together, over the time that all took times how many went at once."""

    batch_id: str
    model: str
    results: list[BatchOutcome]
    succeeded: int
    failed: int
    total_execution_time_ms: float
    parallel_efficiency: float | None


class StageBytes(msgspec.Struct, kw_only=True):
    """Of a stage at another node, by its own word, as told twice a second: of a short reply nothing may have been told."""

    peer: str
    first: int
    end: int
    sent: int
    received: int


class Compared(msgspec.Struct, kw_only=True):
    """Figures of the node `measured_by` (a PeerID) alone, one model after another, always run anew; null where it can't be told. Where
    `compute_provider` names other nodes, they used processor and memory of theirs beside it, which nobody tells.

    `cpu_seconds` and `peak_memory_bytes` of its processes while the model ran, other requests included. `network_bytes` sent and received
    together, by this request alone: weights that had to be fetched for it, hidden states and tokens between stages;
    `network_bytes_of_stages` the same of the other nodes' stages.
    """

    model: str
    status: Literal["success", "error"]
    model_id: str | None = None
    text: str | None = None
    labels: list[Label] | None = None
    tokens_generated: int | None = None
    tokens_per_second: float | None = None
    execution_time_ms: float | None = None
    first_token_ms: float | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    network_bytes: int | None = None
    network_bytes_sent: int | None = None
    network_bytes_received: int | None = None
    network_bytes_of_stages: list[StageBytes] | None = None
    measured_by: str | None = None
    compute_provider: Provider | None = None
    error: dict[str, Any] | None = None


class Comparison(msgspec.Struct, kw_only=True):
    comparison_id: str
    results: list[Compared]
