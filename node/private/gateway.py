"""A gateway in which private models are there for those who may read them, and for nobody else. Whose request it is, the meter says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from node.gateway import (
    ClassificationRequest,
    Classifications,
    EmbeddingRequest,
    Embeddings,
    Event,
    Gateway,
    GenerationRequest,
    ModelInfo,
    Planned,
)
from node.http.metering import caller
from node.model_index import ModelQuery
from node.private.models import PrivateModels, matches
from node.private.pages import by_relevance, key_of, page_of, slice_of
from protocol.ids import model_text


class PrivateGateway:
    """A `Gateway` around another. A name that is a private model's becomes its id, which no public name can be."""

    def __init__(self, inner: Gateway, private: PrivateModels) -> None:
        self._inner = inner
        self._private = private

    async def models(self, query: str | None = None) -> list[ModelInfo]:
        mine = [opened for opened in await self._private.visible(caller()) if matches(opened, ModelQuery(search=query))]
        return [*[await self._private.info(opened) for opened in mine], *await self._inner.models(query)]

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        """Those shared with the caller stand among the public ones in the order asked; before them where a search ranks those."""
        mine = [await self._private.info(opened) for opened in await self._private.visible(caller()) if matches(opened, query)]
        if not mine:
            return await self._inner.page(query)
        if by_relevance(query):
            return await self._beside(mine, query)
        found, total = await self._inner.page(slice_of(query, len(mine)))
        return page_of(mine, found, query), total + len(mine)

    async def _beside(self, mine: list[ModelInfo], query: ModelQuery) -> tuple[list[ModelInfo], int]:
        """All of them by name, at that end where the most relevant stand."""
        mine = sorted(mine, key=lambda info: key_of(info, query))
        last = query.order == "asc"
        rest = query if last else replace(query, offset=max(0, query.offset - len(mine)))
        found, total = await self._inner.page(rest)
        if last:
            begin = max(0, query.offset - total)
            return [*found, *mine[begin : begin + query.limit - len(found)]], total + len(mine)
        shown = mine[query.offset : query.offset + query.limit]
        return [*shown, *found[: query.limit - len(shown)]], total + len(mine)

    async def model(self, name: str) -> ModelInfo:
        opened = await self._private.find(caller(), name)
        return await self._inner.model(name) if opened is None else await self._private.info(opened)

    async def plan(self, model: str, tokens: int | None, force: bool) -> dict[str, Any]:
        return await self._inner.plan((await self._meant(model))[0], tokens, force)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        meant, private = await self._meant(request.model)
        async with aclosing(self._inner.generate(replace(request, model=meant))) as events:  # type: ignore[type-var]
            async for event in events:
                yield replace(event, private=True) if private and isinstance(event, Planned) else event

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        return await self._inner.embed(replace(request, model=(await self._meant(request.model))[0]))

    async def category(self, name: str) -> str | None:
        return await self._inner.category((await self._meant(name))[0])

    async def classify(self, request: ClassificationRequest) -> Classifications:
        return await self._inner.classify(replace(request, model=(await self._meant(request.model))[0]))

    async def health(self) -> dict[str, Any]:
        return await self._inner.health()

    async def status(self) -> dict[str, Any]:
        return await self._inner.status()

    async def _meant(self, name: str) -> tuple[str, bool]:
        """What the inner gateway is asked for, and whether that is private."""
        opened = await self._private.find(caller(), name)
        return (name, False) if opened is None else (model_text(opened.model), True)
