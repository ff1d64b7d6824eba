"""Models as /api/v1 shows them. What nobody has measured or said is null."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from node.gateway import ModelInfo
from node.http.model_figures import Figures


class Pagination(msgspec.Struct, kw_only=True):
    current_page: int
    total_pages: int
    total_models: int
    has_next: bool
    has_previous: bool


class Capabilities(msgspec.Struct, kw_only=True):
    max_context_length: int | None
    supports_streaming: bool = True
    supports_batch: bool = True


class Performance(msgspec.Struct, kw_only=True):
    """As measured by `measured_by` (a PeerID; null: nobody has), over `samples` replies, the last one at `measured_at`.

    `memory_usage_gb`: 10⁹ bytes by which the process that runs models grew for this one: weights, context and what a pass takes. Measured
    at `memory_measured_at`, at the end of a reply made whole by that node while no other model was in use there; null until then.
    """

    avg_inference_time_ms: float | None = None
    tokens_per_second: float | None = None
    memory_usage_gb: float | None = None
    memory_measured_at: str | None = None
    measured_by: str | None = None
    measured_at: str | None = None
    samples: int = 0


class Model(msgspec.Struct, kw_only=True):
    """`popularity_score`: how many nodes hold some of it. `storage`: groups, shards, k, n, holders, redundancy_factor, survives_losses (and
    weakest_group, the group that bears least; group_survives_losses, all by name), stored_bytes. `category` and `framework` are read from
    the model's own configuration.
    """

    id: str
    name: str | None
    author: str | None
    version: str | None
    description: str | None
    category: str | None
    framework: str | None
    architecture: str | None
    parameters: int
    size_bytes: int
    created_at: str | None
    updated_at: str | None
    popularity_score: int
    tags: list[str]
    license: str | None
    private: bool
    capabilities: Capabilities
    performance_metrics: Performance
    storage: dict[str, Any]


class ModelDetail(Model, kw_only=True):
    """`usage_statistics`: what this node has answered. `example_usage`: curl, python and javascript for this very address."""

    usage_statistics: dict[str, Any]
    example_usage: dict[str, str]


class ModelPage(msgspec.Struct, kw_only=True):
    models: list[Model]
    pagination: Pagination


def moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def performance_of(figures: Figures, model_id: str) -> Performance:
    seen = figures.of(model_id)
    if seen is None:
        return Performance()
    return Performance(
        avg_inference_time_ms=round(seen.milliseconds / seen.samples, 3),
        tokens_per_second=round(seen.tokens * 1000 / seen.milliseconds, 2) if seen.milliseconds else None,
        memory_usage_gb=None if seen.memory is None else round(seen.memory / 1e9, 4),
        memory_measured_at=moment(seen.memory_at),
        measured_by=figures.measurer,
        measured_at=moment(seen.at),
        samples=seen.samples,
    )


def fields_of(info: ModelInfo, figures: Figures) -> dict[str, Any]:
    return {
        "id": info.model_id,
        "name": info.name,
        "author": info.publisher,
        "version": info.version,
        "description": info.description,
        "category": info.category,
        "framework": info.framework,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "size_bytes": info.size_bytes,
        "created_at": moment(info.created_at),
        "updated_at": moment(info.updated_at),
        "popularity_score": info.popularity,
        "tags": list(info.tags),
        "license": info.license,
        "private": info.private,
        "capabilities": Capabilities(max_context_length=info.context),
        "performance_metrics": performance_of(figures, info.model_id),
        "storage": info.storage,
    }


def model_view(info: ModelInfo, figures: Figures) -> Model:
    return Model(**fields_of(info, figures))
