"""What the OpenAPI document says of one answered method of one path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

JSON = "application/json"


@dataclass(frozen=True)
class Operation:
    """`reply` None: not JSON (`media` then says what), or no fields worth naming. `wrapped`: inside /api/v1's success."""

    method: str
    path: str
    summary: str
    reply: Any = None
    body: Any = None
    query: Any = None
    media: str = JSON
    events: str | None = None
    wrapped: bool = False
    errors: tuple[int, ...] = (400, 403, 500, 503)
    status: int = 200
