"""A swarm of node processes in which a model takes so many stages and no fewer: each lends just enough memory for its part."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from node.model_cost import StageCost
from node.model_folder import scan
from node.model_manifest import build_manifest
from tests.support.processes import Node
from tests.support.wait import wait_until
from tests.swarm import tools


def memory_for(folder: Path, stages: int, tokens: int, precision: str = "bf16") -> int:
    """Bytes with which the model in `folder` takes `stages` nodes and no fewer."""
    manifest, _ = build_manifest(scan(folder), lambda done, total: None)
    cost, layers = StageCost(manifest, precision), manifest.summary.layers or 0
    if stages == 1:
        return cost.total(0, layers, tokens)
    size = -(-layers // stages)
    while size < layers:
        enough = max(cost.total(0, size, tokens), cost.total(layers - size, layers, tokens), cost.total(1, 1 + size, tokens))
        most = [end for end in range(1, layers) if cost.total(0, end, tokens) <= enough]
        last = [layers - first for first in range(1, layers) if cost.total(first, layers, tokens) <= enough]
        between = [count for count in range(1, layers) if cost.total(1, 1 + count, tokens) <= enough]
        if max(most) + max(last) + max(0, stages - 2) * max(between) >= layers:
            return enough
        size += 1
    raise ValueError(f"no memory makes this model take {stages} stages")


class StageSwarm:
    """`with StageSwarm(root, folder, 2, 600) as swarm: swarm.ask("…", 128)`. Each node's steps are in `traces` once it is closed."""

    def __init__(self, root: Path, folder: Path, stages: int, tokens: int, *, nodes: int = 0, module: str = "bench.traced_node") -> None:
        self.folder, self.stages = folder, stages
        self._root, self._size, self._module = root, nodes or stages, module
        self._options = ("--lend", "both", "--max-memory", str(memory_for(folder, stages, tokens)))
        self.traces = [root / f"trace{number}.jsonl" for number in range(self._size)]
        self.nodes: list[Node] = []
        self.model = ""

    def __enter__(self) -> StageSwarm:
        try:
            for number, trace in enumerate(self.traces):
                join = ("--join", self.nodes[0].ticket) if number else ()
                env = {"BENCH_TRACE": str(trace), "MF_AUDITS": "false"}
                node = Node(self._root / f"node{number}", *self._options, *join, env=env, module=self._module)
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

    def close(self) -> None:
        for node in self.nodes:
            if node.alive:
                try:
                    node.stop()
                except AssertionError:
                    node.kill()

    def ask(self, prompt: str, tokens: int, node: int = 0, **options: Any) -> tools.Reply:
        """A greedy reply, asked at node number `node`; an error of it is raised."""
        reply = tools.ask(self.nodes[node], self.model, prompt, tokens, precision="bf16", **options)
        if reply.error is not None:
            raise reply.error
        return reply
