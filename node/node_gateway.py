"""The node behind its HTTP surface: lists from the reporter, replies from the generator, health from probes that really ran."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from node.classify import Classifier
from node.embed import Embedder
from node.explain import Explainer
from node.gateway import ClassificationRequest, Classifications, EmbeddingRequest, Embeddings, Event, GenerationRequest, ModelInfo
from node.generate import Generator
from node.health import Verdict, registry, worst
from node.locate import Locator
from node.model_index import ModelQuery
from node.model_kinds import category_of
from node.model_list import ModelList
from node.probe import Probe
from node.report import Reporter
from node.swarm.interface import Swarm


class NodeGateway:
    """Implements `node.gateway.Gateway`. `precision`: the owner's choice for what is asked this way; `unreadable`: groups with a shard here
    that can't be read now."""

    def __init__(
        self,
        reporter: Reporter,
        models: ModelList,
        generator: Generator,
        swarm: Swarm,
        locator: Locator,
        embedder: Embedder,
        classifier: Classifier,
        probe: Probe,
        explainer: Explainer,
        precision: str = "bf16",
        unreadable: Callable[[], int] = lambda: 0,
    ) -> None:
        self._precision = precision
        self._unreadable = unreadable
        self._reporter = reporter
        self._models = models
        self._generator = generator
        self._swarm = swarm
        self._locator = locator
        self._embedder = embedder
        self._classifier = classifier
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

    async def category(self, name: str) -> str | None:
        located = await self._locator.locate(self._swarm.resolve(name))
        return category_of(located.manifest.summary)

    async def classify(self, request: ClassificationRequest) -> Classifications:
        return await self._classifier.classify(request)

    async def status(self) -> dict[str, Any]:
        return await self._reporter.status()

    async def health(self) -> dict[str, Any]:
        """healthy only after a probe in the last minute that went through the store and the network's own parts."""
        last = self._probe.last
        stored, of_store = await self._probe.storage()
        computed, of_compute = self._probe.compute()
        known, unreadable = self._reporter.models_known(), self._unreadable()
        registered = registry(unreadable)
        whole = worst((stored, computed, registered))
        return {
            **_told(whole),
            "storage_network": _told(stored) | of_store,
            "compute_network": _told(computed) | of_compute,
            "model_registry": _told(registered) | {"models": known, "unreadable_groups": unreadable},
            "last_probe": None if last is None else {"at": last.at, "passed": last.passed, "seconds": last.seconds, "fault": last.fault},
        }


def _told(verdict: Verdict) -> dict[str, Any]:
    return {"status": verdict.status, "reason": verdict.reason}
