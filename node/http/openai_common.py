"""What the endpoints of `/v1` have in common: the name of a completion, its stream, its usage."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from msgspec import UNSET, UnsetType

from node.gateway import Finished, Planned
from node.http.context import SETTINGS, STREAM
from node.http.generation import route_header
from node.http.openai_schemas import StreamOptions
from node.http.replies import Usage
from node.http.side_by_side import SideBySide
from node.http.stream import EventStream


@dataclass(frozen=True)
class Naming:
    """What is equal in all parts of one completion."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def fields(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model, "system_fingerprint": self.system_fingerprint}


def naming(prefix: str, model: str, planned: Planned) -> Naming:
    """The fingerprint is the model's id, where it is known the engine, and the precision: with a seed, what decides the words."""
    fingerprint = "-".join(filter(None, (planned.model_id, planned.engine, planned.precision)))
    return Naming(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model, fingerprint)


async def open_stream(request: web.Request, planned: Planned, *, named: bool = False) -> EventStream:
    stream = EventStream(request, request.app[SETTINGS].write_timeout, named=named)
    request[STREAM] = stream
    await stream.open({"X-MF-Route": route_header(planned.kind, planned.route)})
    return stream


def usage_of(ends: Sequence[Finished], choices: int = 1) -> Usage:
    """Of all choices together; a prompt counts once, however many choices it has."""
    prompt = sum(end.prompt_tokens for end in ends[::choices])
    made = sum(end.completion_tokens for end in ends)
    return Usage(prompt_tokens=prompt, completion_tokens=made, total_tokens=prompt + made)


class StreamUsage:
    """What the chunks of a stream say of usage, by what was asked: nothing, null until the last, or what was used so far."""

    def __init__(self, options: StreamOptions | None, together: SideBySide, choices: int) -> None:
        self.asked = options is not None and options.include_usage
        self._running = options is not None and options.continuous_usage_stats
        self._together = together
        self._choices = choices
        self._made = [0] * together.count

    def note(self, index: int, tokens: int) -> None:
        self._made[index] = max(self._made[index], tokens)

    def now(self) -> Usage | UnsetType | None:
        if not self.asked:
            return UNSET
        made, prompt = sum(self._made), self._together.prompt_tokens(self._choices)
        return Usage(prompt_tokens=prompt, completion_tokens=made, total_tokens=prompt + made) if self._running else None


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
