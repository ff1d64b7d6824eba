"""A gateway without a node behind it: says what it was told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from node.gateway import (
    ClassificationRequest,
    Classifications,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    GenerationRequest,
    ModelInfo,
    Piece,
    Planned,
    StageTime,
    TextLogprob,
)
from node.model_index import ModelQuery
from node.traffic import note
from protocol.errors import MfError, NotFound

PEERS = ["12D3KooWAlpha", "12D3KooWBeta", "12D3KooWGamma"]
ROUTE: list[dict[str, Any]] = [{"peer": peer, "first": 10 * i, "end": 10 * i + 10, "here": i == 0} for i, peer in enumerate(PEERS)]
TIMINGS = {"plan": 0.001, "assemble": 0.2, "load": 0.3, "first_token": 0.6, "total": 1.501}
STAGES = (StageTime(PEERS[0], 0, 10, 0.01, 0.2, 0.003), StageTime(PEERS[1], 10, 20), StageTime(PEERS[2], 20, 30, 0.02, 0.25, 0.0))
MODEL = ModelInfo(
    model_id="mfm1aeaaa",
    name="ann/demo@1",
    publisher="ann",
    version="1",
    size_bytes=269_000_000,
    parameters=135_000_000,
    architecture="LlamaForCausalLM",
    context=8192,
    license="apache-2.0",
    description="a small model",
    created_at=1_700_000_000.0,
    storage={"groups": 32, "shards": 192, "k": 2, "n": 6, "holders": 6, "redundancy_factor": 3.0, "survives_losses": 4, "stored_bytes": 1},
)


CLASSIFIER = replace(
    MODEL, model_id="mfm1ceaaa", name="ann/moods@1", architecture="BertForSequenceClassification", category="text-classification"
)


def many_models(count: int) -> list[ModelInfo]:
    return [replace(MODEL, model_id=f"mfm1{i:04d}", name=f"ann/model-{i:04d}@1") for i in range(count)]


@dataclass
class FakeGateway:
    """`early` is raised before the plan, `late` after the first words; `hold`: "plan" or "words" to wait there for ever."""

    listed: list[ModelInfo] = field(default_factory=lambda: [MODEL])
    words: list[str] = field(default_factory=lambda: ["Par", "is", "."])
    early: Exception | None = None
    late: Exception | None = None
    hold: str | None = None
    silent_end: bool = False
    moves: tuple[int, int] = (0, 0)
    """Bytes (sent, received) that each reply takes."""
    memory: int | None = None
    reason: str = "stop"
    asked: list[GenerationRequest] = field(default_factory=list)
    embedded: list[EmbeddingRequest] = field(default_factory=list)
    classified: list[ClassificationRequest] = field(default_factory=list)
    queries: list[str | None] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def models(self, query: str | None = None) -> list[ModelInfo]:
        self.queries.append(query)
        return [info for info in self.listed if query is None or query in (info.name or "")]

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        self.queries.append(query.search)
        found = [info for info in self.listed if not query.search or query.search in (info.name or "")]
        return found[query.offset : query.offset + query.limit], len(found)

    async def model(self, name: str) -> ModelInfo:
        for info in self.listed:
            if name in (info.model_id, info.name):
                return info
        raise NotFound(f"no model is called {name!r}", details={"candidates": [info.name for info in self.listed][:5]})

    async def plan(self, model: str, tokens: int | None, force: bool) -> dict[str, Any]:
        info = await self.model(model)
        return {"model_id": info.model_id, "kind": "pipeline", "stages": ROUTE, "tokens": tokens, "forced": force}

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.asked.append(request)
        try:
            info = await self.model(request.model)
            if self.early:
                raise self.early
            await self._hold("plan")
            yield Planned(info.model_id, "pipeline", ROUTE, 7)
            note(*self.moves)
            if request.echo:
                yield Piece(request.text or "".join(f"<{token}>" for token in request.tokens or ()), 0, _spelled(request, "Prompt", None))
            for made, word in enumerate(self.words, 1):
                yield Piece(word, made, _spelled(request, word, -0.25 * made))
            await self._hold("words")
            if self.late:
                raise self.late
            if not self.silent_end:
                yield Finished(self.reason, 7, len(self.words), ROUTE, TIMINGS, memory=self.memory, stages=STAGES)
        finally:
            self.closed.set()

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Each input's own number and its length."""
        info = await self.model(request.model)
        if self.early:
            raise self.early
        self.embedded.append(request)
        rows = [struct.pack("<2f", number, len(given)) for number, given in enumerate(request.inputs)]
        return Embeddings(info.model_id, rows, sum(len(given) for given in request.inputs))

    async def category(self, name: str) -> str | None:
        """None of what isn't listed, so that `generate` says it."""
        return next((info.category for info in self.listed if name in (info.model_id, info.name)), None)

    async def classify(self, request: ClassificationRequest) -> Classifications:
        """Scores that grow with the number of the label."""
        info = await self.model(request.model)
        if self.early:
            raise self.early
        self.classified.append(request)
        scores = [[0.125, 0.25, 0.625] for _given in request.inputs]
        return Classifications(
            info.model_id, ["calm", "cross", "glad"], scores, 5, "fp32", [ROUTE[0]], {"plan": 0.001, "load": 0.2, "total": 0.251}
        )

    async def _hold(self, where: str) -> None:
        if self.hold == where:
            self.waiting.set()
            await asyncio.Event().wait()

    async def health(self) -> dict[str, Any]:
        parts = {name: {"status": "healthy"} for name in ("storage_network", "compute_network", "model_registry")}
        return {"status": "healthy", "reason": None, **parts, "last_probe": {"at": 1.0, "ok": True}}

    async def status(self) -> dict[str, Any]:
        peers = [
            {"peer_id": peer, "alive": peer != PEERS[2], "version": "0.1.0", "addresses": ["/ip4/10.0.0.9/tcp/4840"]} for peer in PEERS
        ]
        models = [{"model_id": MODEL.model_id, "name": MODEL.name, "survives_losses": 4, "holders": 6}]
        return {"peer_id": PEERS[0], "version": "0.1.0", "peers": peers, "models": models}


def _spelled(request: GenerationRequest, word: str, logprob: float | None) -> tuple[TextLogprob, ...]:
    """A token a word, the likeliest beside it being its capitals."""
    if request.sampling.logprobs is None:
        return ()
    top = [(word, word.encode(), logprob or 0.0), (word.upper(), word.upper().encode(), -9.0)]
    return (TextLogprob(word, word.encode(), logprob, tuple(top[: request.sampling.logprobs])),)


def refusal(kind: type[MfError]) -> MfError:
    return kind("group layer.3: 1 shard of 2 needed is missing", hint="ask later", details={"group": "layer.3", "missing": 1})
