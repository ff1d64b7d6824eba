"""A swarm of node processes in which a model takes so many stages and no fewer: each lends too little for a part of one stage less."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.slow_link import SlowLinks
from node.model_cost import StageCost
from node.model_folder import scan
from node.model_manifest import build_manifest
from tests.support.processes import Node
from tests.support.wait import wait_until
from tests.swarm import tools

_LOOK, _REST = 2.0, 0.1
"""Seconds between looks, and the share of a core under which a swarm rests."""


def memory_for(folder: Path, stages: int, tokens: int, precision: str = "bf16") -> int:
    """Bytes with which the model in `folder` takes `stages` nodes and no fewer: halfway to where fewer would do."""
    least = least_for(folder, stages, tokens, precision)
    return least if stages == 1 else (least + least_for(folder, stages - 1, tokens, precision)) // 2


def least_for(folder: Path, stages: int, tokens: int, precision: str = "bf16") -> int:
    """The fewest with which it does."""
    manifest, _ = build_manifest(scan(folder), lambda done, total: None)
    cost, layers = StageCost(manifest, precision), manifest.summary.layers or 0
    if stages == 1:
        return cost.total(0, layers, tokens)
    first = [cost.total(0, end, tokens) for end in range(1, layers)]
    last = [cost.total(layers - count, layers, tokens) for count in range(1, layers)]
    between = [cost.total(1, 1 + count, tokens) for count in range(1, layers)]
    for enough in sorted({*first, *last, *between}):
        fitting = [sum(size <= enough for size in sizes) for sizes in (first, last, between)]
        if all(fitting[:2]) and fitting[0] + fitting[1] + (stages - 2) * fitting[2] >= layers:
            return enough
    raise ValueError(f"no memory makes this model take {stages} stages")


class StageSwarm:
    """`with StageSwarm(root, folder, 2, 600) as swarm: swarm.ask("…", 128)`. Each node's steps are in `traces` once it is closed.

    `memory`: so much is lent instead, and the nodes cut the model into equal stages by themselves, the first one at the node that is asked.
    No guesses ahead unless `guesses`: they pay off differently here and over a network, and depend on the text. `entry_lends` False: the
    node that is asked runs no layers. `delay`: seconds by which libp2p's traffic is late. `env` is every node's.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        stages: int,
        tokens: int,
        *,
        nodes: int = 0,
        module: str = "bench.traced_node",
        precision: str = "bf16",
        engine: str = "torch",
        memory: int = 0,
        guesses: bool = False,
        entry_lends: bool = True,
        delay: float = 0.0,
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.stages, self.precision = folder, stages, precision
        self._root, self._size, self._module = root, nodes or stages, module
        enough = memory or memory_for(folder, stages, tokens, precision)
        self._options = ("--max-memory", str(enough), "--engine", engine, "--round-trip-budget", "5s")
        self._entry = ("--lend", "both") if entry_lends else ("--lend", "none", "--max-memory", "16MB")
        self._env = {"MF_AUDITS": "false", "BENCH_GUESSES": str(guesses).lower(), **(env or {})}
        if memory:
            self._env["BENCH_STAGES"] = str(stages)
        self.traces = [root / f"trace{number}.jsonl" for number in range(self._size)]
        self._links = SlowLinks(delay) if delay else None
        self.nodes: list[Node] = []
        self.model = ""

    def __enter__(self) -> StageSwarm:
        try:
            if self._links is not None:
                self._links.__enter__()
            for number, trace in enumerate(self.traces):
                join = ("--join", self.nodes[0].ticket) if number else ()
                env = {**self._env, "BENCH_TRACE": str(trace)}
                if self._links is not None:
                    port = trace.with_suffix(".port")
                    env |= {"BENCH_PORT": str(port), "BENCH_PROXY": str(self._links.open(port))}
                lend = ("--lend", "both") if number else self._entry
                node = Node(self._root / f"node{number}", *self._options, *lend, *join, env=env, module=self._module)
                self.nodes.append(node)
                node.start()
            told = self.nodes[0].cli("publish", str(self.folder), "--name", "bench", "--compression", "raw", timeout=300.0)
            self.model = told["model_id"]
            for node in self.nodes:
                wait_until(lambda node=node: node.cli("models", "bench")["models"] != [], 20.0, "the model known")  # type: ignore[misc]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if self._links is not None:
            self._links.__exit__(kind, error, trace)

    def close(self) -> None:
        for node in self.nodes:
            if node.alive:
                try:
                    node.stop()
                except AssertionError:
                    node.kill()

    def ask(self, prompt: str, tokens: int, node: int = 0, **options: Any) -> tools.Reply:
        """A greedy reply, asked at node number `node`; an error of it is raised."""
        reply = tools.ask(self.nodes[node], self.model, prompt, tokens, precision=self.precision, **options)
        if reply.error is not None:
            raise reply.error
        return reply

    def settle(self, within: float = 60.0) -> None:
        """Until its processes rest: what stands by is loaded while a reply runs and after it, and takes the cores from the next one."""
        looked, ticks = time.monotonic(), self._ticks()

        def rests() -> bool:
            nonlocal looked, ticks
            if time.monotonic() < looked + _LOOK:
                return False
            before, looked, ticks = ticks, time.monotonic(), self._ticks()
            return ticks - before < _REST * _LOOK * os.sysconf("SC_CLK_TCK")

        wait_until(rests, within, "the swarm's processes at rest")

    def _ticks(self) -> int:
        pids = [pid for node in self.nodes for pid in (node.pid, *tools.descendants(node.pid))]
        return sum(tools.cpu_ticks(pid) for pid in pids if tools.running(pid))

    def through(self, prompt: str, tokens: int) -> tools.Reply:
        """A reply over all the stages."""
        reply = self.ask(prompt, tokens)
        if len(reply.route) != self.stages:
            raise RuntimeError(f"{len(reply.route)} stages, {self.stages} were wanted")
        return reply

    def pace(self, prompt: str, tokens: int) -> float:
        """Tokens a second of such a reply, after its first."""
        return self.through(prompt, tokens).pace
