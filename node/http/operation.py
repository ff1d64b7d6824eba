"""One answered method of one path, as the OpenAPI document tells it. Each API lists its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

JSON = "application/json"
ASK = (400, 403, 404, 413, 429, 500, 503)
ONE = (400, 403, 404, 500, 503)
"""Statuses of failure: of what runs a model, and of what shows one thing."""


@dataclass(frozen=True)
class Operation:
    """`reply` None: not JSON (`media` then says what), or no fields worth naming. `wrapped`: inside /api/v1's success. `events` says what a
    stream of this operation carries."""

    method: str
    path: str
    summary: str
    reply: Any = None
    body: Any = None
    query: Any = None
    media: str = JSON
    events: str | None = None
    streams: str = "text/event-stream"
    failure: Any = None
    """The body of a failure, where it isn't the API's usual one."""
    wrapped: bool = False
    example: dict[str, Any] | None = None
    """A body to begin with, but for the model's name."""
    errors: tuple[int, ...] = (400, 403, 500, 503)
    status: int = 200
