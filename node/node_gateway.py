"""The node behind its HTTP surface: lists from the reporter, replies from the generator, health from probes that really ran."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from node.embed import Embedder
from node.explain import Explainer
from node.gateway import EmbeddingRequest, Embeddings, Event, GenerationRequest, ModelInfo
from node.generate import Generator
from node.model_index import ModelQuery
from node.model_list import ModelList
from node.probe import Probe
from node.report import Reporter


class NodeGateway:
    """Implements `node.gateway.Gateway`. `precision`: the owner's choice for what is asked this way."""

    def __init__(
        self,
        reporter: Reporter,
        models: ModelList,
        generator: Generator,
        embedder: Embedder,
        probe: Probe,
        explainer: Explainer,
        precision: str = "bf16",
    ) -> None:
        self._precision = precision
        self._reporter = reporter
        self._models = models
        self._generator = generator
        self._embedder = embedder
        self._probe = probe
        self._explainer = explainer

    async def models(self, query: str | None = None) -> list[ModelInfo]:
        return await self._reporter.models(query)

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        return await self._models.page(query)

    async def model(self, name: str) -> ModelInfo:
        return await self._reporter.model(name)

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        return self._generator.generate(replace(request, precision=self._precision))

    async def plan(self, model: str, tokens: int | None, force: bool) -> dict[str, Any]:
        return await self._explainer.explain(model, tokens, self._precision, force=force)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        return await self._embedder.embed(request)

    async def status(self) -> dict[str, Any]:
        return await self._reporter.status()

    async def health(self) -> dict[str, Any]:
        """healthy only after a probe in the last minute that went through the store and the network's own parts."""
        last = self._probe.last
        fresh = last is not None and last.passed and time.time() - last.at < 60
        return {
            "status": "healthy" if fresh else "degraded",
            "storage_network": await self._probe.storage(),
            "compute_network": self._probe.compute(),
            "model_registry": {"models": self._reporter.models_known()},
            "last_probe": None if last is None else {"at": last.at, "passed": last.passed, "seconds": last.seconds, "fault": last.fault},
        }
