"""A swarm of stage servers over the in-memory network, with a worker that computes something checkable instead of a model.

Each layer is a running sum over all positions so far, as attention is over its cache: a lost, doubled or reordered step, a layer that
was rebuilt from the wrong rows or not at all gives other tokens, and the same model cut anywhere gives the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.lanes import Lanes
from node.loaded_stage import LoadedStage, StageHold
from node.network.memory import MemoryHub, MemoryNetwork
from node.serve_stage import StageServer
from node.steps import Steps
from node.waiting_line import IMPATIENT, Asker, NoRoomNow, WaitingLine
from protocol.errors import BadInput, Conflict, MfError
from protocol.ids import PeerId
from protocol.messages import SESSION_PROTOCOL, STEP_PROTOCOL, StageSpec, TokenLogprob
from runtime.interface import UNCHECKED, Left, OpenSequence, Step, Stepped

LAYERS = 6
MODULUS = 97 * 300
"""So small that no value looks like infinity in bf16."""


class Toy:
    """One session of one stage. `after[p]`: each layer's sum once position p was seen."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self.epoch = 0
        self.stepped = False
        self.logprobs: int | None = None
        self.after: list[list[int]] = []

    def row(self, position: int, value: int) -> int:
        sums = list(self.after[position - 1]) if position else [0] * (self.end - self.first)
        for layer, before in enumerate(sums):
            value = sums[layer] = (before + value + 1) % MODULUS
        self.after[position:] = [sums]
        return value


class SumWorker:
    """Stands in for the worker process.

    `break_at`: the first step from there fails. `spoil` changes an answer. `recurrent` can't go back. `stuck` never answers.
    `words`: so many tokens there are; with few of them guesses are often right.
    """

    reuse = True

    def __init__(self) -> None:
        self.toys: dict[str, Toy] = {}
        self.steps: list[tuple[int, int]] = []
        self.break_at: int | None = None
        self.spoil: Callable[[Step, Stepped], Stepped] = lambda step, done: done
        self.recurrent = False
        self.stuck = False
        self.words = 97

    def begin_step(self, step: Step, done: Callable[[Stepped | MfError], None]) -> None:
        def compute() -> None:
            try:
                answer: Stepped | MfError = self.spoil(step, self.compute(step))
            except MfError as error:
                answer = error
            if not self.stuck:
                done(answer)

        asyncio.get_running_loop().call_soon(compute)

    def compute(self, step: Step) -> Stepped:
        toy = self.toys[step.session]
        self.steps.append((step.position, step.count))
        if self.break_at is not None and step.position >= self.break_at:
            self.break_at = None
            raise MfError("broken on purpose")
        if step.epoch > toy.epoch:
            if self.recurrent and step.position < len(toy.after):
                raise Conflict("this model's memory can't go back")
            toy.epoch, toy.after = step.epoch, toy.after[: step.position]
        if not toy.stepped:
            toy.stepped, toy.after = True, toy.after[: step.position]
        if step.epoch < toy.epoch or step.position > len(toy.after):
            raise Conflict(f"the session stands at {len(toy.after)}, the step begins at {step.position}")
        raw, rows = step.hidden or b"", step.tokens or []
        if step.hidden is not None:
            rows = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
        if len(rows) != step.count:
            raise BadInput(f"{len(rows)} rows for {step.count} positions")
        made = [toy.row(step.position + at, value) for at, value in enumerate(rows)]
        if toy.end == LAYERS:
            done = self.choose(toy, step, made) if step.sample else Stepped()
            if step.score is not None:
                done.scored = [[score(value, token)] for value, token in zip(made, step.score, strict=True) if token != UNCHECKED]
            return done
        return Stepped(hidden=b"".join(value.to_bytes(4, "little") for value in made), dtype="bf16", shape=[step.count, 2])

    def choose(self, toy: Toy, step: Step, made: list[int]) -> Stepped:
        """The guesses as far as they are right, and one more; what was computed beyond goes."""
        tokens = [value % self.words for value in made[len(made) - 1 - step.guessed :]]
        guesses = step.drafted or (step.tokens or [])[len(made) - step.guessed :]
        assert len(guesses) == step.guessed
        right = next((at for at, guess in enumerate(guesses) if guess != tokens[at]), len(guesses))
        del toy.after[step.position + step.count - step.guessed + right :]
        done = Stepped(token=tokens[0], more=tokens[1 : right + 1] or None)
        if toy.logprobs is not None:
            done.logprobs = [TokenLogprob(tokens[0], -0.5), *(TokenLogprob(one, -1.0 - one) for one in range(toy.logprobs))]
        return done


def score(value: int, token: int) -> TokenLogprob:
    """What a last stage whose sum is `value` says of the token that comes next."""
    return TokenLogprob(token, -float(value))


class SumRoom:
    """Loads nothing; `fault` is raised when a sequence is opened. `places`: so many sequences at once, the others wait in line."""

    def __init__(self, worker: SumWorker) -> None:
        self.worker = worker
        self.fault: Exception | None = None
        self.open = self.asked = 0
        self.places = 1_000
        self.line = WaitingLine(lambda: asyncio.get_running_loop().time())
        self.order: list[str] = []
        """Entries, as they were let in."""
        self.openings: list[OpenSequence] = []
        self.goes_back = False
        self.left: dict[Left, list[list[int]]] = {}
        """What sessions left, by its name."""
        self.boast = 0
        """Positions that it says to have and hasn't."""
        self.prepared: list[tuple[int, int]] = []

    async def prepare(self, located: Any, first: int, end: int, precision: str) -> dict[str, float]:
        if self.fault is not None:
            raise self.fault
        self.prepared.append((first, end))
        return {}

    @asynccontextmanager
    async def sequence(
        self, located: Any, first: int, end: int, precision: str, opening: OpenSequence, asker: Asker = IMPATIENT
    ) -> AsyncIterator[StageHold]:
        self.asked += 1

        async def attempt() -> None:
            if self.fault is not None:
                raise self.fault
            if self.open >= self.places:
                raise NoRoomNow
            self.open += 1

        await self.line.enter(asker, attempt)
        self.order.append(asker.account)
        self.worker.toys[opening.session] = toy = Toy(first, end)
        toy.logprobs = opening.sampling.logprobs
        self.openings.append(opening)
        if opening.after is not None and opening.after in self.left:
            toy.after = self.left.pop(opening.after)[: opening.positions]
        hold = StageHold(LoadedStage("stage", 0, self.goes_back, timings={"load": 0.01}), reused=len(toy.after) + self.boast)
        try:
            yield hold
        finally:
            if hold.left is not None and self.goes_back:
                self.left[hold.left] = toy.after
            self.open -= 1
            self.line.freed()


@dataclass
class Member:
    """One node of the swarm."""

    network: MemoryNetwork
    worker: SumWorker = field(default_factory=SumWorker)
    lanes: Lanes | None = None

    def __post_init__(self) -> None:
        async def locate(model: bytes) -> object:
            return SimpleNamespace(model=model, manifest=SimpleNamespace(summary=SimpleNamespace(hidden=2)), may_run_at=lambda peer: True)

        self.room = SumRoom(self.worker)
        self.steps = Steps(self.network)
        locator: Any = SimpleNamespace(locate=locate)
        room: Any = self.room
        worker: Any = self.worker
        self.server = StageServer(self.network, self.steps, locator, room, worker, lends_compute=True, lanes=self.lanes)
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


def expected_scores(prompt: list[int]) -> dict[int, list[TokenLogprob]]:
    """Those of the prompt's tokens, by their place."""
    toy = Toy(0, LAYERS)
    return {at: [score(toy.row(at - 1, prompt[at - 1]), prompt[at])] for at in range(1, len(prompt))}


def expected(prompt: list[int], count: int, words: int = 97) -> list[int]:
    """The tokens a healthy run gives."""
    toy, tokens = Toy(0, LAYERS), list(prompt)
    made = [toy.row(at, token) for at, token in enumerate(prompt)]
    for _ in range(count):
        tokens.append(made[-1] % words)
        made.append(toy.row(len(tokens) - 1, tokens[-1]))
    return tokens[len(prompt) :]
