"""One generation behind a request: its deadline, its figures, and that it always ends with its request.

Both APIs use it alike: `async with generation(...) as reply`, then `async for event in reply`. Leaving the block, by whatever
way, closes the gateway's iterator, and that stops the work on every machine it runs on.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from node.gateway import Event, Finished, Gateway, GenerationRequest, Piece, Planned, Queued
from node.http.metrics import Metrics
from node.http.settings import HttpSettings
from protocol.errors import DeadlineExceeded, MfError, Unavailable
from protocol.limits import MAX_TIMED_STAGES

log = logging.getLogger(__name__)

_ROUTE_LIMIT = 4096
_UNSAFE = re.compile(r"[^A-Za-z0-9._:-]")
_TIMINGS = ("plan", "assemble", "load", "queue", "prefill", "decode", "network", "first_token", "total")
_CLOSE_WITHIN = 5.0
OnQueued = Callable[[int], Awaitable[None]]


class Reply:
    """The events after `planned`. `finished` is set once the last one has come."""

    def __init__(self, planned: Planned, events: AsyncIterator[Event], metrics: Metrics, started: float) -> None:
        self.planned = planned
        self.finished: Finished | None = None
        self.on_queued: OnQueued | None = None
        """Is told the position in line while the reply waits for room."""
        self._events = events
        self._metrics = metrics
        self._started = started

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every piece with text or logarithms; afterwards `finished` is there. `Unavailable` if the gateway ended without finishing."""
        first = True
        async for event in self._events:
            if isinstance(event, Finished):
                self.finished = event
                return
            if isinstance(event, Queued) and self.on_queued is not None:
                await self.on_queued(event.position)
            if not isinstance(event, Piece):
                continue
            if first and event.tokens:
                self._metrics.first_token(time.monotonic() - self._started)
                first = False
            if event.text or event.logprobs:
                yield event
        raise Unavailable("the reply broke off without an end", hint="ask again")

    def end(self) -> Finished:
        if self.finished is None:
            raise Unavailable("the reply broke off without an end", hint="ask again")
        return self.finished


@asynccontextmanager
async def generation(gateway: Gateway, wanted: GenerationRequest, metrics: Metrics, settings: HttpSettings) -> AsyncIterator[Reply]:
    """The reply, once it is planned. Errors before that are raised here, when the HTTP status can still say them."""
    started, kind, outcome = time.monotonic(), "none", "cancelled"
    events = gateway.generate(wanted)
    reply: Reply | None = None
    try:
        async with asyncio.timeout(wanted.timeout + settings.grace):
            reply = Reply(await _planned(events), events, metrics, started)
            kind = reply.planned.kind
            yield reply
            outcome = reply.end().reason
    except TimeoutError:
        outcome = DeadlineExceeded.code
        raise DeadlineExceeded(
            f"the reply wasn't whole within {wanted.timeout:g} s", hint="ask for fewer tokens or give it longer"
        ) from None
    except MfError as error:
        outcome = error.code
        raise
    finally:
        await _close(events)
        finished = reply.finished if reply else None
        metrics.generation(kind, outcome, *((finished.prompt_tokens, finished.completion_tokens) if finished else ()))


async def _planned(events: AsyncIterator[Event]) -> Planned:
    event = await anext(events, None)
    if not isinstance(event, Planned):
        raise Unavailable("the model gave no plan for this request")
    return event


async def _close(events: AsyncIterator[Event]) -> None:
    close = getattr(events, "aclose", None)
    if close is None:
        return
    try:
        async with asyncio.timeout(_CLOSE_WITHIN):
            await close()
    except TimeoutError:
        log.warning("a generation didn't stop in time", extra={"event": "generation_stuck", "fields": {"seconds": _CLOSE_WITHIN}})


def route_header(kind: str, route: list[dict[str, Any]]) -> str:
    """`pipeline;PEER[0-10],PEER[10-20]`: ASCII, safe in a header, at most 4 KiB."""
    stages = [f"{_safe(stage.get('peer'))}[{_safe(stage.get('first'))}-{_safe(stage.get('end'))}]" for stage in route]
    text = f"{_safe(kind)};{','.join(stages)}"
    return text if len(text) <= _ROUTE_LIMIT else text[: _ROUTE_LIMIT - 3] + "..."


def _safe(part: Any) -> str:
    return _UNSAFE.sub("", "" if part is None else str(part))[:128]


def timings_ms(finished: Finished) -> dict[str, float]:
    """The gateway's seconds as milliseconds, under the names that are shown."""
    return {name: round(finished.timings[name] * 1000, 3) for name in _TIMINGS if name in finished.timings}


def server_timing(finished: Finished) -> str:
    """The same as a header, and of each of the first 16 stages `sNp`, `sNd`, `sNw`: what it computed of prompt and tokens, its waits."""
    parts = list(timings_ms(finished).items())
    for number, stage in enumerate(finished.stages[:MAX_TIMED_STAGES]):
        told = (("p", stage.prefill), ("d", stage.decode), ("w", stage.wait))
        parts += [(f"s{number}{short}", round(seconds * 1000, 3)) for short, seconds in told if seconds is not None]
    return ", ".join(f"{name};dur={value:g}" for name, value in parts)


def headers_of(planned: Planned, finished: Finished) -> dict[str, str]:
    """Headers of a plain reply: the final route and how long each part took."""
    return {"X-MF-Route": route_header(planned.kind, finished.route), "Server-Timing": server_timing(finished)}
