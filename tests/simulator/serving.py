"""Which node serves which layers, in virtual time: `runtime.stage_choice` unchanged, ten thousand nodes, hours in a minute.

Nodes come within the first ten minutes with one shard of one layer each, choose, tell, load over their own line, serve, and look again
with jitter. What a node tells is seen by all others `lag` seconds later, all at once: the herd at its worst. Speeds, memories and lines
are drawn log-uniform; the speed a node announces is off by a few percent, another few at each look. `least` is what counts: the
throughput of the least served layer over the mean, of those that have loaded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from runtime import stage_choice as policy
from runtime.layer_path import Road, Roads
from runtime.stage_choice import Choices, LayerLoads, Span
from tests.simulator.events import Events

HOUR = 3_600.0
K = 20
"""Shards that make a layer: what one shard saves is 1/K of its bytes."""
EMBED = HEAD = 1.0
"""What the ends take beside their layers, in layers."""


@dataclass(frozen=True)
class Scene:
    """`layer_bytes` of one layer, `lines` bytes a second; `leave` part of the nodes that go per hour, as many come."""

    nodes: int = 10_000
    layers: int = 80
    hours: float = 3.0
    seed: int = 1
    joined_within: float = 600.0
    lag: float = 10.0
    noise: float = 0.05
    layer_bytes: float = 4e8
    lines: tuple[float, float] = (1e7, 1e8)
    memories: tuple[float, float] = (2.5, 45.0)
    speeds: tuple[float, float] = (2e-4, 4e-3)
    leave: float = 0.0


class Rule(Protocol):
    """How a node chooses; stage_choice here, another's in `petals_rule`."""

    def join(self, node: SimServer, swarm: Serving) -> Span | None: ...

    def reconsider(self, node: SimServer, swarm: Serving) -> Span | None: ...

    def next_look(self, now: float, rng: random.Random) -> float: ...


@dataclass
class SimServer:
    """`told` is what all others see of it; `span` what it wants; `serving` what it has loaded."""

    number: int
    memory: float
    layer_seconds: float
    line: float
    shard: int
    said_seconds: float = 0.0
    span: Span | None = None
    told: tuple[Span, float] | None = None
    serving: tuple[Span, float] | None = None
    fetched: float = 0.0
    moves: int = 0
    gone: bool = False
    order: int = 0
    choices: Choices | None = field(default=None, repr=False)

    def held(self, span: Span) -> float:
        """The part of a span's bytes that is here: the one shard, and what it has loaded."""
        mine = self.span
        overlap = 0 if mine is None else max(0, min(mine.end, span.end) - max(mine.first, span.first))
        outside = mine is None or not mine.first <= self.shard < mine.end
        return (overlap + (outside and span.first <= self.shard < span.end) / K) / (span.end - span.first)


class ByStageChoice:
    """The policy that ships."""

    def join(self, node: SimServer, swarm: Serving) -> Span | None:
        return policy.join(swarm.seen, self._choices(node, swarm), swarm.rate(node), swarm.rng)

    def reconsider(self, node: SimServer, swarm: Serving) -> Span | None:
        assert node.span is not None
        return policy.reconsider(swarm.others(node), self._choices(node, swarm), node.span, swarm.rate(node), swarm.rng)

    def next_look(self, now: float, rng: random.Random) -> float:
        return policy.next_look(now, rng)

    def _choices(self, node: SimServer, swarm: Serving) -> Choices:
        if node.choices is None:
            layers = swarm.scene.layers
            spans = policy.cells(layers, lambda first, end: cost(layers, first, end) <= node.memory)
            node.choices = Choices(spans, [node.held(span) for span in spans])
        return node.choices


def cost(layers: int, first: int, end: int) -> float:
    return end - first + (EMBED if first == 0 else 0.0) + (HEAD if end == layers else 0.0)


class Serving:
    """The swarm at it; `run` to a time, `lose` some, look at `least`."""

    def __init__(self, scene: Scene, rule: Rule | None = None) -> None:
        self.scene = scene
        self.rule = rule or ByStageChoice()
        self.rng = random.Random(scene.seed)
        self.events = Events()
        self.seen = LayerLoads(scene.layers)
        self.real = LayerLoads(scene.layers)
        self.nodes: list[SimServer] = []
        self.moved: list[tuple[float, float]] = []
        """(when, bytes) of each load after a node's first."""
        self.loaded = 0.0
        for _ in range(scene.nodes):
            self.events.at(self.rng.random() * scene.joined_within, self._comer())
        if scene.leave:
            self._churn()

    def run(self, until: float) -> None:
        self.events.run(until)

    @property
    def up(self) -> list[SimServer]:
        return [node for node in self.nodes if not node.gone]

    def least(self) -> float:
        """Throughput of the least served layer over the mean."""
        return float(self.real.tokens.min() / max(self.real.tokens.mean(), 1e-12))

    def fewest(self) -> int:
        """Servers of the layer that has the fewest."""
        return int(self.real.servers.min())

    def moved_after(self, when: float) -> float:
        """Bytes moved by nodes that had loaded before, over the bytes that are served."""
        served = sum(node.serving[0].end - node.serving[0].first for node in self.up if node.serving) * self.scene.layer_bytes
        return sum(size for at, size in self.moved if at >= when) / max(served, 1.0)

    def lose(self, chosen: Callable[[SimServer], bool]) -> int:
        """These nodes are gone now, all at once."""
        lost = [node for node in self.up if chosen(node)]
        for node in lost:
            self._go(node)
        return len(lost)

    def rate(self, node: SimServer) -> float:
        """Tokens a second this node says it adds to each layer of the largest span it may take."""
        return policy.rate_of(Span(0, max(1, min(self.scene.layers, int(node.memory)))), node.said_seconds)

    def others(self, node: SimServer) -> LayerLoads:
        """What the node sees of all others."""
        view = LayerLoads(self.scene.layers)
        view.tokens, view.servers = self.seen.tokens.copy(), self.seen.servers.copy()
        if node.told is not None:
            view.remove(*node.told)
        return view

    def roads(self, rng: random.Random) -> Roads:
        """What an entry would measure of the nodes that serve, as the planner takes it."""
        found = [
            Road(str(node.number), node.serving[0].first, node.serving[0].end, 0.005 + 0.2 * rng.random(), node.said_seconds, 0.0)
            for node in self.up
            if node.serving is not None
        ]
        return Roads(self.scene.layers, found)

    def _comer(self) -> Callable[[], None]:
        draw = self.rng
        node = SimServer(
            len(self.nodes),
            _log_uniform(draw, *self.scene.memories),
            _log_uniform(draw, *self.scene.speeds),
            _log_uniform(draw, *self.scene.lines),
            draw.randrange(self.scene.layers),
        )
        self.nodes.append(node)
        node.gone = True
        return lambda: self._come(node)

    def _come(self, node: SimServer) -> None:
        node.gone = False
        self._measure(node)
        self._take(node, self.rule.join(node, self))
        self._look_later(node)

    def _measure(self, node: SimServer) -> None:
        node.said_seconds = node.layer_seconds * float(np.exp(self.scene.noise * self.rng.gauss(0.0, 1.0)))

    def _look_later(self, node: SimServer) -> None:
        self.events.at(self.rule.next_look(self.events.now, self.rng), lambda: self._look(node))

    def _look(self, node: SimServer) -> None:
        if node.gone:
            return
        if node.span is None:
            self._take(node, self.rule.join(node, self))
        elif node.serving is not None:
            self._measure(node)
            better = self.rule.reconsider(node, self)
            if better is not None and better != node.span:
                self._take(node, better)
            else:
                self._tell(node)
        self._look_later(node)

    def _take(self, node: SimServer, span: Span | None) -> None:
        """Announces, then loads: what was loaded before is let go, the memory is needed."""
        if span is None:
            return
        size = (1.0 - node.held(span)) * (span.end - span.first) * self.scene.layer_bytes
        if node.serving is not None:
            self.real.remove(*node.serving)
            node.serving = None
        if node.span is not None:
            self.moved.append((self.events.now, size))
            node.moves += 1
        self.loaded += size
        node.span, node.choices = span, None
        node.order += 1
        order = node.order
        self._tell(node)
        self.events.after(size / node.line, lambda: self._ready(node, order))

    def _ready(self, node: SimServer, order: int) -> None:
        if node.gone or node.order != order or node.span is None:
            return
        node.serving = node.span, policy.rate_of(node.span, node.layer_seconds)
        self.real.add(*node.serving)

    def _tell(self, node: SimServer) -> None:
        assert node.span is not None
        said = node.span, policy.rate_of(node.span, node.said_seconds)
        self.events.after(self.scene.lag, lambda: self._see(node, said))

    def _see(self, node: SimServer, said: tuple[Span, float] | None) -> None:
        if node.told is not None:
            self.seen.remove(*node.told)
        node.told = None if node.gone else said
        if node.told is not None:
            self.seen.add(*node.told)

    def _go(self, node: SimServer) -> None:
        node.gone = True
        if node.serving is not None:
            self.real.remove(*node.serving)
            node.serving = None
        self.events.after(self.scene.lag, lambda: self._see(node, None))

    def _churn(self) -> None:
        def step() -> None:
            here = self.up
            if here:
                self._go(here[self.rng.randrange(len(here))])
                self._comer()()
            self.events.after(pause * self.rng.expovariate(1.0), step)

        pause = HOUR / (self.scene.leave * self.scene.nodes)
        self.events.at(self.scene.joined_within, step)


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())
