"""What the HTTP surface knows of the node: `http/` is written against this and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from node.model_index import ModelQuery
from protocol.messages import Sampling


@dataclass(frozen=True)
class GenerationRequest:
    """One reply to make. Give `messages` (chat, through the model's template), `text` or `tokens` (the prompt's own ids).

    `stop` strings end the reply and are not part of it; `continue_final` goes on with the last message instead of
    opening a new one; `tools` (OpenAI's form) go into the template; `timeout` seconds for the whole reply. With `echo` the prompt
    comes first, as a `Piece` with `tokens` 0, its tokens' logarithms in it where they are asked for.

    What it takes of the machine is weighed against others' under `account`, which gets a share of `weight` and waits behind those of a
    greater `priority`; what was computed for it may serve later prompts of the same `reader`, nobody else's.
    """

    model: str
    sampling: Sampling
    max_tokens: int | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    text: str | None = None
    tokens: list[int] | None = None
    echo: bool = False
    stop: tuple[str, ...] = ()
    continue_final: bool = False
    timeout: float = 600.0
    precision: str = "bf16"
    force: bool = False
    """Also over a route that takes more round trips than the owner's budget allows."""
    account: str = ""
    reader: str = ""
    weight: float = 1.0
    priority: int = 0


@dataclass(frozen=True)
class EmbeddingRequest:
    """`inputs` texts or their token ids; `timeout` seconds for all of them."""

    model: str
    inputs: list[str | list[int]]
    timeout: float = 600.0


@dataclass(frozen=True)
class Embeddings:
    """`rows` one vector of length 1 for each input, raw little-endian fp32."""

    model_id: str
    rows: list[bytes]
    tokens: int


@dataclass(frozen=True)
class ClassificationRequest:
    """`inputs` texts; `timeout` seconds for all of them."""

    model: str
    inputs: list[str]
    timeout: float = 600.0


@dataclass(frozen=True)
class Classifications:
    """`scores` of each input, one for each of `labels`, in their order; `route` and `timings` as `Finished` has them."""

    model_id: str
    labels: list[str]
    scores: list[list[float]]
    tokens: int
    precision: str
    route: list[dict[str, Any]]
    timings: dict[str, float]


@dataclass(frozen=True)
class Planned:
    """First event: where it will run. `route` e.g. [{"peer", "first", "end", "here"}], `kind` here|peer|pipeline.

    `engine` torch|llama of a reply made here; None: others choose theirs. `precision` of all its stages.
    """

    model_id: str
    kind: str
    route: list[dict[str, Any]]
    prompt_tokens: int
    engine: str | None = None
    precision: str = "bf16"
    private: bool = False
    """Nothing of its replies is kept."""


@dataclass(frozen=True)
class Queued:
    """Before the first piece, and again whenever it changes: `position` in line for room at this node, 1 is next."""

    position: int


@dataclass(frozen=True)
class TextLogprob:
    """A token as text and bytes with its natural logarithm, and the likeliest at its place as (text, bytes, logarithm).

    The first token of an echoed prompt follows nothing: it has no logarithm.
    """

    text: str
    raw: bytes
    logprob: float | None
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """New text (whole characters, maybe empty), `tokens` made so far."""

    text: str
    tokens: int
    logprobs: tuple[TextLogprob, ...] = ()
    """One for each token since the piece before, where they were asked."""


@dataclass(frozen=True)
class StageTime:
    """Seconds that a stage computed for one reply, of its prompt and of its tokens, and that steps waited there for their turn.

    `peer` itself measured them; what it didn't tell is None. A stage that was replaced isn't listed.
    """

    peer: str
    first: int
    end: int
    prefill: float | None = None
    decode: float | None = None
    wait: float | None = None


@dataclass(frozen=True)
class Finished:
    """Last event. `reason` stop|length; `route` the final one; `stages` what each of its stages told of its time.

    `timings` seconds, measured by this node: plan, assemble, load, queue (in line for room, and until the first pass), prefill, decode,
    network (of decode, what no stage accounts for), first_token, total. What isn't known is left out.
    `memory`: bytes that the whole model took at this node while it made the reply, as measured; None where it wasn't alone, or elsewhere.
    """

    reason: str
    prompt_tokens: int
    completion_tokens: int
    route: list[dict[str, Any]]
    timings: dict[str, float]
    replaced: int = 0
    memory: int | None = None
    stages: tuple[StageTime, ...] = ()
    reused: int = 0
    """Positions of the prompt that were computed for an earlier reply."""


Event = Planned | Queued | Piece | Finished


@dataclass(frozen=True)
class ModelInfo:
    """A model as lists show it; figures nobody has measured are None."""

    model_id: str
    name: str | None
    publisher: str | None
    version: str | None
    size_bytes: int
    parameters: int
    architecture: str | None
    context: int | None
    license: str | None
    description: str | None
    created_at: float | None
    storage: dict[str, Any] = field(default_factory=dict)
    """groups, shards, k, n, holders, redundancy_factor, survives_losses, weakest_group, group_survives_losses, stored_bytes"""
    category: str | None = None
    framework: str | None = None
    updated_at: float | None = None
    popularity: int = 0
    tags: tuple[str, ...] = ()
    private: bool = False
    """Shared with who sees it, and with others of its publisher's choice."""


class Gateway(Protocol):
    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        """One page of the models that match, and how many match in all."""

    async def models(self, query: str | None = None) -> list[ModelInfo]: ...

    async def model(self, name: str) -> ModelInfo:
        """`NotFound` with near names in details["candidates"]."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """Planned, Queued where it waits, Pieces, Finished.

        Errors come before Planned wherever they can; closing the iterator stops the work everywhere.
        """

    async def plan(self, model: str, tokens: int | None, force: bool) -> dict[str, Any]:
        """Where a session of so many tokens would run, and why, as `mf-node explain --json`."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Vectors by the whole model on this node; errors as for `generate`."""

    async def category(self, name: str) -> str | None:
        """What the model is for, by its own files; None where they don't say. Errors as for `generate`."""

    async def classify(self, request: ClassificationRequest) -> Classifications:
        """Labels by the whole model on this node; errors as for `generate`."""

    async def health(self) -> dict[str, Any]:
        """{"status": "healthy"|"degraded"|"unhealthy", "reason", "storage_network": {…}, "compute_network": {…}, "model_registry": {…},
        "last_probe": …}; each part with a status, a reason where it isn't healthy, and its figures."""

    async def status(self) -> dict[str, Any]:
        """As `mf-node status --json`."""
