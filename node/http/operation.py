"""One answered method of one path, as the OpenAPI document tells it. Each API lists its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

JSON = "application/json"
ANY = (400, 401, 403, 421, 429, 500, 503)
ONE = (*ANY, 404)
ASK = (*ONE, 413)
"""Statuses of failure: of anything that looks at a credential, of what shows one thing, of what runs a model."""
WHY = {
    400: "Something given is wrong, unknown or not supported; it is named",
    401: "A credential is needed, or the one given is no longer good",
    403: "The credential, the page or the Host it came from doesn't allow it",
    404: "There is no such model or thing",
    409: "Something else is in the way",
    413: "More than this node takes",
    421: "The account's home is another node, whose address is told",
    429: "Too much at once: `Retry-After` says when to ask again",
    500: "The node failed",
    503: "The swarm can't do it just now; who was asked is told",
    507: "There is no room left",
}


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
    body_media: str = JSON
    example: dict[str, Any] | None = None
    """A body to begin with, but for the model's name."""
    errors: tuple[int, ...] = ANY
    status: int = 200
