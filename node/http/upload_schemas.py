"""Bodies of uploads, and of changing what is said of a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from node.http.account_schemas import Taken
from protocol import limits

ModelName = Annotated[str, Meta(min_length=1, max_length=96, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Description = Annotated[str, Meta(max_length=4_096)]
License = Annotated[str, Meta(max_length=128)]


class DeclaredFile(Taken):
    """`sha256` in hex, compared with what came."""

    name: Annotated[str, Meta(min_length=1, max_length=limits.MAX_FILE_NAME)]
    size: Annotated[int, Meta(ge=0, le=2**48)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9A-Fa-f]{64}$")] | None = None


class UploadRequest(Taken):
    """What the model is called. With `files` nothing else is taken, and the last byte of the last one begins the work; without, a
    multipart body's end does, or POST …/complete. `gguf`: what becomes of GGUF files. `private`: nobody
    sees or runs it but those it is shared with."""

    name: ModelName
    version: ModelName = "1"
    description: Description | None = None
    license: License | None = None
    gguf: Literal["dequantise", "keep"] | None = None
    private: bool = False
    files: Annotated[list[DeclaredFile], Meta(min_length=1, max_length=limits.MAX_FILES)] | None = None


class FileState(msgspec.Struct, kw_only=True):
    """`size` null: not known yet."""

    name: str
    size: int | None
    received: int
    complete: bool


class UploadCheck(msgspec.Struct, kw_only=True):
    """A test that ran, and what it saw; `passed` null: it couldn't run."""

    name: str
    passed: bool | None
    detail: str
    seconds: float


class UploadStatus(msgspec.Struct, kw_only=True):
    """`stage`: receiving, reading, storing, checking, finished, failed. `coding`: groups, k, n, bytes; `distribution`: shards, peers;
    `validation`: header_check, hashes, load, stage_self_test, generation, each as it ran."""

    upload_id: str
    stage: str
    percentage: float
    status_url: str
    created_at: str | None
    files: list[FileState]
    missing: list[str]
    coding: dict[str, Any]
    distribution: dict[str, Any]
    validation: list[UploadCheck]
    model_id: str | None
    name: str | None
    error: dict[str, Any] | None


class UploadList(msgspec.Struct, kw_only=True):
    uploads: list[UploadStatus]


class ModelChange(Taken):
    """What isn't given stays; null takes it away."""

    description: Description | UnsetType | None = UNSET
    license: License | UnsetType | None = UNSET


class ChangedModel(msgspec.Struct, kw_only=True):
    model_id: str
    name: str
    description: str | None
    license: str | None


class Withdrawn(msgspec.Struct, kw_only=True):
    """`shards_dropped`: with its last name went the shards that this node put anywhere."""

    model_id: str
    names: list[str]
    shards_dropped: bool


class WebhookRequest(Taken):
    """`url` public, http or https; `events` all where none are given."""

    url: Annotated[str, Meta(min_length=8, max_length=2_048)]
    events: Annotated[list[Literal["upload.finished", "upload.failed", "batch.finished"]], Meta(min_length=1, max_length=3)] | None = None


class WebhookShown(msgspec.Struct, kw_only=True):
    id: str
    url: str
    events: list[str]
    created_at: str | None


class MadeWebhook(WebhookShown, kw_only=True):
    """`secret` is shown this once: deliveries are signed with it."""

    secret: str


class WebhookList(msgspec.Struct, kw_only=True):
    webhooks: list[WebhookShown]
