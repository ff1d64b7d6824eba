"""A swarm of stage servers over the in-memory network, with a worker that computes something checkable instead of a model.

The hidden state carries the running sum of the tokens seen; the last stage's token is that sum modulo 97 plus one per layer
passed, so that a lost, doubled or reordered step gives another token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.memory import MemoryHub, MemoryNetwork
from node.serve_stage import StageServer
from node.stage_room import LoadedStage
from node.steps import Steps
from protocol.ids import PeerId
from protocol.messages import SESSION_PROTOCOL, STEP_PROTOCOL, StageSpec
from runtime.interface import OpenSequence, Step, Stepped

LAYERS = 6


class SumWorker:
    """Stands in for the worker process; `break_at` position raises there once."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self.stages: dict[str, tuple[int, int]] = {}
        self.steps: list[tuple[int, int]] = []
        self.break_at: int | None = None

    async def step(self, step: Step) -> Stepped:
        first, end = self.stages[step.session]
        self.steps.append((step.position, step.count))
        if self.break_at is not None and step.position >= self.break_at:
            self.break_at = None
            raise RuntimeError("broken on purpose")
        if step.tokens is not None:
            self.sums[step.session] = self.sums.get(step.session, 0) + sum(step.tokens)
            value = self.sums[step.session]
        else:
            assert step.hidden is not None
            value = int.from_bytes(step.hidden[:4], "little")
        value += end - first
        if end == LAYERS:
            return Stepped(token=value % 97)
        raw = value.to_bytes(4, "little") * step.count
        return Stepped(hidden=raw, dtype="bf16", shape=[step.count, 2])


class SumRoom:
    """Loads nothing; `fault` is raised when a sequence is opened."""

    def __init__(self, worker: SumWorker) -> None:
        self.worker = worker
        self.fault: Exception | None = None
        self.open = 0

    @asynccontextmanager
    async def sequence(self, located: Any, first: int, end: int, precision: str, opening: OpenSequence) -> AsyncIterator[LoadedStage]:
        if self.fault is not None:
            raise self.fault
        self.worker.stages[opening.session] = (first, end)
        self.open += 1
        try:
            yield LoadedStage("stage", 0, timings={"load": 0.01})
        finally:
            self.open -= 1


@dataclass
class Member:
    """One node of the swarm."""

    network: MemoryNetwork
    worker: SumWorker = field(default_factory=SumWorker)

    def __post_init__(self) -> None:
        async def locate(model: bytes) -> object:
            return SimpleNamespace(model=model)

        self.room = SumRoom(self.worker)
        self.steps = Steps(self.network)
        locator: Any = SimpleNamespace(locate=locate)
        room: Any = self.room
        worker: Any = self.worker
        self.server = StageServer(self.network, self.steps, locator, room, worker, lends_compute=True)
        self.network.serve(SESSION_PROTOCOL, self.server.handle)
        self.network.serve(STEP_PROTOCOL, self.steps.handle)

    @property
    def peer(self) -> PeerId:
        return self.network.peer_id


async def members(hub: MemoryHub, count: int) -> list[Member]:
    """`count` nodes, all connected."""
    made = [Member(MemoryNetwork(hub, Ed25519PrivateKey.generate())) for _ in range(count)]
    for member in made:
        await member.network.start()
    for member in made:
        for other in made:
            if other is not member:
                await member.network.dial(other.peer, other.network.addresses())
    return made


def route(*peers: PeerId) -> list[StageSpec]:
    """LAYERS dealt evenly over `peers`."""
    size = LAYERS // len(peers)
    return [StageSpec(peer, at * size, LAYERS if at == len(peers) - 1 else (at + 1) * size) for at, peer in enumerate(peers)]


def expected(prompt: list[int], count: int) -> list[int]:
    """The tokens a healthy run gives."""
    total, tokens = sum(prompt), []
    for _ in range(count):
        tokens.append((total + LAYERS) % 97)
        total += tokens[-1]
    return tokens
