"""One answered method of one path, as the OpenAPI document tells it. Each API lists its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

JSON = "application/json"
ANY = (400, 401, 403, 413, 421, 429, 499, 500, 503)
ONE = (*ANY, 404)
ASK = (*ONE, 507)
"""Statuses of failure: of everything (each request may show a credential, or be signed with its body), of what shows one thing, of what
runs a model."""
RAN = ("X-MF-Route", "Server-Timing")
"""Headers of a reply that a model made."""
WHY = {
    400: "Something given is wrong, unknown or not supported; it is named",
    401: "A credential is needed, or the one given is no longer good",
    403: "The credential, the page or the Host it came from doesn't allow it",
    404: "There is no such model or thing",
    409: "Something else is in the way",
    413: "More than this node takes",
    421: "The account's home is another node, whose address is told",
    429: "Too much at once: `Retry-After` says when to ask again",
    499: "The client left, or the work was cancelled: in logs, metrics and results of async requests, for nobody waits for it",
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
    later: Any = None
    """The reply (202) to who doesn't wait for the real one."""
    errors: tuple[int, ...] = ANY
    status: int = 200
    idempotent: bool = False
    """Whether an Idempotency-Key is heard."""
    ranged: bool = False
    """Whether a Content-Range says which bytes the body has."""
    headers: tuple[str, ...] = ()
    """Of a good reply, beside those that every reply has."""

    @property
    def failures(self) -> tuple[int, ...]:
        return tuple(sorted({*self.errors, *((409,) if self.idempotent else ())}))

    @property
    def xml(self) -> bool:
        """Whether `Accept: application/xml` is heard."""
        return self.path.startswith("/api/v1/") and self.media == JSON
