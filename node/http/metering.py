"""Counting what a request uses, wherever in its handling that happens.

The meter of the request under way is a context variable, so that neither API needs to hand it down; tasks that a handler starts
inherit it. `MeteredGateway` stands between both APIs and the node: it notes tokens as they are made, also of replies that break off, and
refuses
models that the caller's credential isn't for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from node.accounts.allowance import TIERS, Allowance, Standing
from node.accounts.caller import UNLIMITED, Caller
from node.accounts.usage import UsageBook
from node.gateway import (
    ClassificationRequest,
    Classifications,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    Gateway,
    GenerationRequest,
    ModelInfo,
    Piece,
    Planned,
)
from node.http.model_figures import Figures
from node.model_index import ModelQuery
from protocol.errors import Forbidden

METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
LOCAL = Caller("open", frozenset({"inference", "models:read"}), "open", UNLIMITED)
"""Whoever runs programs on this machine, where the listener is for them."""


class Meter:
    """Of one request. `begin` takes it from the allowance, `end` gives its slot back; `detach` leaves that to work that goes on."""

    def __init__(self, caller: Caller, allowance: Allowance | None = None, usage: UsageBook | None = None) -> None:
        self.caller = caller
        self.standing: Standing | None = None
        self._allowance = allowance
        self._usage = usage
        self._running = 0
        self._detached = False

    def begin(self) -> None:
        """`AllowanceSpent` where nothing is left."""
        if self._allowance is None:
            return
        now = time.time()
        self.standing = self._allowance.standing(self.caller.subject, self.caller.tier, now)
        self.standing = self._allowance.begin(self.caller.subject, self.caller.tier, now)
        self._running += 1

    def look(self) -> None:
        """For requests that cost nothing: what is left all the same."""
        if self._allowance is not None:
            self.standing = self._allowance.standing(self.caller.subject, self.caller.tier, time.time())

    def detach(self) -> None:
        self._detached = True

    def leave(self) -> None:
        """The request is answered."""
        if not self._detached:
            self.end()

    def end(self) -> None:
        while self._allowance is not None and self._running:
            self._running -= 1
            self._allowance.end(self.caller.subject, time.time())

    def charge(self, count: int) -> None:
        """So many more requests of the hour, all or none: parts of this one. `AllowanceSpent` where there aren't as many."""
        if self._allowance is not None and count:
            self.standing = self._allowance.charge(self.caller.subject, self.caller.tier, count, time.time())

    @contextmanager
    def side_by_side(self, most: int) -> Iterator[int]:
        """How many parts of this request may run at the same time: its own place, and others of the allowance that are free now."""
        extra = 0
        try:
            while extra + 1 < most and self._enter():
                extra += 1
            yield extra + 1
        finally:
            for _ in range(extra):
                self._leave()

    def _enter(self) -> bool:
        return self._allowance is None or self._allowance.enter(self.caller.subject, self.caller.tier, time.time())

    def _leave(self) -> None:
        if self._allowance is not None:
            self._allowance.end(self.caller.subject, time.time())

    def check_model(self, asked: str, model_id: str) -> None:
        if not self.caller.may_use(asked, model_id):
            raise Forbidden("the credential isn't for this model", hint="use a key without a list of models, or one that has it")

    def used(self, model_id: str, prompt: int, completion: int) -> None:
        if self._allowance is not None:
            self._allowance.spend(self.caller.subject, prompt + completion, time.time())
        if self._usage is not None:
            self._usage.add(self.caller.who, self.caller.subject, model_id, prompt, completion)


def caller() -> Caller:
    """Whose request is being handled."""
    meter = METER.get()
    return meter.caller if meter is not None else LOCAL


class MeteredGateway:
    """A `Gateway` around another. `figures` gets the times of finished replies."""

    def __init__(self, inner: Gateway, figures: Figures | None = None) -> None:
        self._inner = inner
        self._figures = figures or Figures()

    async def models(self, query: str | None = None) -> list[ModelInfo]:
        return await self._inner.models(query)

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        return await self._inner.page(query)

    async def plan(self, model: str, tokens: int | None, force: bool) -> dict[str, Any]:
        return await self._inner.plan(model, tokens, force)

    async def model(self, name: str) -> ModelInfo:
        return await self._inner.model(name)

    async def health(self) -> dict[str, Any]:
        return await self._inner.health()

    async def status(self) -> dict[str, Any]:
        return await self._inner.status()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        meter = METER.get()
        if meter is None:
            meter = Meter(LOCAL)
        planned: Planned | None = None
        completion, who = 0, meter.caller
        tier = TIERS.get(who.tier, TIERS["free"])
        request = replace(request, account=who.subject, reader=who.who, weight=tier.weight, priority=tier.priority)
        try:
            async with aclosing(self._inner.generate(request)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Planned):
                        meter.check_model(request.model, event.model_id)
                        planned = event
                    elif isinstance(event, Piece):
                        completion = event.tokens
                    elif isinstance(event, Finished):
                        completion = event.completion_tokens
                        self._figures.add(planned.model_id if planned else request.model, event)
                    yield event
        finally:
            if planned is not None:
                meter.used(planned.model_id, planned.prompt_tokens, completion)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        meter = await self._allowed(request.model)
        made = await self._inner.embed(request)
        meter.used(made.model_id, made.tokens, 0)
        return made

    async def category(self, name: str) -> str | None:
        return await self._inner.category(name)

    async def classify(self, request: ClassificationRequest) -> Classifications:
        meter = await self._allowed(request.model)
        made = await self._inner.classify(request)
        meter.used(made.model_id, made.tokens, 0)
        return made

    async def _allowed(self, model: str) -> Meter:
        meter = METER.get() or Meter(LOCAL)
        if meter.caller.models is not None:
            meter.check_model(model, (await self._inner.model(model)).model_id)
        return meter
