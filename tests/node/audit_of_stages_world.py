"""Nodes with a model of rows instead of one of weights, honest or not, and an auditor at the first of them.

A token is a random row; each layer turns it by a fixed rotation, and every machine adds a little noise of its own; the last stage's
token is the one whose row lies nearest. So all that audits look at is there, in microseconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.audit_tally import AuditTally
from node.evidence_store import EvidenceStore
from node.heard import Listening
from node.network.memory import MemoryHub, MemoryNetwork
from node.pipeline import Pipeline, PipelineRequest, StageLost
from node.stage_audit import Ended, StageAuditor
from protocol.errors import MfError
from protocol.ids import ModelId, PeerId
from protocol.messages import Sampling, StageSpec
from protocol.prints import seal_prints
from runtime.interface import UNCHECKED, Step, Stepped
from runtime.routing import Offer
from tests.node.pipeline_fakes import LAYERS, Member, Toy

HIDDEN = 48
VOCABULARY = 97
NOISE = 0.01
MODEL = ModelId(bytes(32))
PROMPT = list(range(3, 33))
GREEDY = Sampling()


@cache
def layer(index: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(index).standard_normal((HIDDEN, HIDDEN)))[0]


@cache
def embedding() -> np.ndarray:
    return np.random.default_rng(99).standard_normal((VOCABULARY, HIDDEN))


class RowWorker:
    """`skips` layers; gives the `wrong_token` in place of its own at every second place; `lies` of its gaps."""

    reuse = True

    def __init__(self, seed: int) -> None:
        self.toys: dict[str, Toy] = {}
        self.rng = np.random.default_rng(seed)
        self.skips: set[int] = set()
        self.wrong_token = False
        self.lies = False
        self.ran = 0

    def begin_step(self, step: Step, done: Callable[[Stepped | MfError], None]) -> None:
        asyncio.get_running_loop().call_soon(lambda: done(self.compute(step)))

    def compute(self, step: Step) -> Stepped:
        first, end = self.toys[step.session].first, self.toys[step.session].end
        self.ran += step.count
        if step.tokens is not None:
            rows = embedding()[step.tokens]
        else:
            rows = (np.frombuffer(step.hidden or b"", dtype="<u2").astype("<u4") << 16).view("<f4").reshape(step.count, HIDDEN)
        for index in range(first, end):
            if index not in self.skips:
                rows = rows @ layer(index)
        rows = rows + NOISE * self.rng.standard_normal(rows.shape)
        raw = (rows.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        if end < LAYERS:
            return Stepped(hidden=raw, dtype="bf16", shape=[step.count, HIDDEN], seconds=0.001)
        done = self._last(step, rows)
        done.hidden = raw if step.tail else None
        return done

    def _last(self, step: Step, rows: np.ndarray) -> Stepped:
        logits = rows @ np.roll(embedding(), 1, axis=0).T
        token = int(logits[-1].argmax())
        if self.wrong_token and (step.position + step.count) % 2:
            token = (token + 40) % VOCABULARY
        gaps = None
        if step.check is not None:
            gaps = [
                float(UNCHECKED) if given == UNCHECKED else float(9.0 if self.lies else row.max() - row[given])
                for row, given in zip(logits, step.check, strict=True)
            ]
        return Stepped(token=token if step.sample else None, gaps=gaps)


class OneOf:
    """Offers everybody but who is to be avoided; `allowed` is what the owner's privacy gives, each has memory for so many `stages`."""

    def __init__(self, me: PeerId, allowed: Iterable[PeerId], stages: int) -> None:
        self.me, self.allowed, self.stages = me, list(allowed), stages

    def offers(self, located: Any, avoid: set[PeerId]) -> list[Offer]:
        return [Offer(peer, 1 << 30, here=peer == self.me) for peer in self.allowed if peer not in avoid]

    def fits(self, *asked: Any) -> set[str]:
        beside = Counter(stage.peer for stage in asked[-1])
        return {peer for peer in self.allowed if beside[peer] < self.stages}

    def serving(self, *_asked: Any) -> set[str]:
        return set()


class World:
    """`nodes[0]` is the entry. `experts`: the model has some. `pause`: seconds before a stage is replaced."""

    pause = 0.0

    def __init__(self, nodes: list[Member], experts: bool = False) -> None:
        self.nodes = nodes
        self.blames: list[tuple[PeerId, str, str]] = []
        names = ["model.layers.0.mlp.experts.0.w1"] if experts else ["model.norm.weight"]
        manifest = SimpleNamespace(tensors=[SimpleNamespace(name=name) for name in names])
        self.located: Any = SimpleNamespace(model=MODEL, manifest=manifest)
        self.told: list[str] = []
        self.store: EvidenceStore | None = None
        self.allow([node.peer for node in nodes])

    def allow(self, peers: list[PeerId], part: float = 1.0, stages: int = LAYERS) -> None:
        entry = self.nodes[0]
        swarm: Any = SimpleNamespace(blame=lambda peer, layers, why: self.blames.append((peer, layers, why)))
        router: Any = OneOf(entry.peer, peers, stages)
        self.tally = AuditTally(lambda what, name, number: self.told.append(name) if what == "outcome" else None)
        self.auditor = StageAuditor(entry.network, swarm, router, entry.steps, entry.server, self.tally, self.store, Random(3), part)

    def worker(self, at: int) -> RowWorker:
        worker: Any = self.nodes[at].worker
        assert isinstance(worker, RowWorker)
        return worker

    async def session(self, stages: list[StageSpec], new: int = 30, prompt: list[int] = PROMPT, sampling: Sampling = GREEDY) -> Ended:
        """One reply over `stages`, with what the stages said of it."""
        listening, tokens = await self.reply([stages], new, prompt, sampling)
        return Ended(self.located, "bf16", tokens, len(prompt), sampling, listening.heard)

    async def reply(
        self,
        routes: list[list[StageSpec]],
        new: int = 30,
        prompt: list[int] = PROMPT,
        sampling: Sampling = GREEDY,
        stop_after: int | None = None,
        change_after: int = 10,
        over: bool | None = None,
    ) -> tuple[Listening, list[int]]:
        """One reply over the first of `routes`, after each `change_after` tokens over the next; the caller leaves after `stop_after`.
        The auditor is told that it is `over`, whole or not; None: it isn't."""
        entry, listening, later = self.nodes[0], self.auditor.listen(routes[0], len(prompt)), routes[1:]
        request = PipelineRequest(
            model=MODEL, stages=routes[0], tokens=prompt, new_max=new, stop_tokens=[], sampling=sampling, precision="bf16",
            prints=listening.key, heard=listening, prompt=len(prompt),
        )  # fmt: skip
        tokens = list(prompt)
        async with Pipeline(entry.network, entry.steps, entry.server, request) as pipeline:
            ended, leaving = False, False
            while not ended:
                try:
                    async for sampled in pipeline.run():
                        tokens.append(sampled.token)
                        made = len(tokens) - len(prompt)
                        ended = sampled.finish is not None or made == stop_after
                        if ended or (later and not leaving and made % change_after == 0):
                            break
                except StageLost:
                    leaving = False
                    await pipeline.reroute(later.pop(0))
                    continue
                if not ended:
                    leaving = True
                    await asyncio.sleep(self.pause)
                    pipeline._lose(StageLost(PeerId(routes[0][0].peer), "it is to be replaced"))
            if over is None:
                await listening.heard.until(len(tokens) - 1, 2.0)
            else:
                await self.auditor.over(listening, self.located, "bf16", sampling, tokens, whole=over)
        return listening, tokens


async def world(hub: MemoryHub, count: int, experts: bool = False) -> World:
    keys = [Ed25519PrivateKey.generate() for _ in range(count)]
    nodes = [_member(hub, key, seed) for seed, key in enumerate(keys)]
    for node in nodes:
        await node.network.start()
    for node in nodes:
        for other in nodes:
            if other is not node:
                await node.network.dial(other.peer, other.network.addresses())
    return World(nodes, experts)


async def _locate(model: bytes) -> object:
    return SimpleNamespace(model=model, manifest=None, may_run_at=lambda peer: True)


def _member(hub: MemoryHub, key: Ed25519PrivateKey, seed: int) -> Member:
    worker: Any = RowWorker(seed)
    node = Member(MemoryNetwork(hub, key), worker)
    locator: Any = SimpleNamespace(locate=_locate)
    node.server._parts.locator = locator
    node.server.seal = partial(seal_prints, key)
    return node
