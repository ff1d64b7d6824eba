"""SmolLM2-135M over two and three node processes beside Language Pipes over as many: tokens a second, ratios.

Same weights (bf16), prompt and number of tokens, greedy, warm; turn about in one run, medians of the pace after the first token. Threads
of both wait asleep; all processes of one kind rest while the other's turn is. `python -m bench.language_pipes [TOKENS] [ROUNDS]`.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.language_pipes_peer import LanguagePipes
from bench.pipeline import PROMPT
from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model
from node.model_folder import scan
from node.model_manifest import build_manifest

STAGES = (2, 3)


def layer_bytes(folder: Path) -> int:
    """What one layer's tensors take, in bf16."""
    manifest, _ = build_manifest(scan(folder), lambda done, total: None)
    layers = manifest.summary.layers or 1
    return sum(tensor.length for tensor in manifest.tensors if ".layers." in tensor.name) // layers


def their_pace(pipes: LanguagePipes, tokens: int) -> float:
    """Tokens a second after the first."""
    at = pipes.ask(PROMPT, tokens)
    if len(at) < tokens // 2:
        raise RuntimeError(f"a reply of {len(at)} tokens, {tokens} were asked")
    return (len(at) - 1) / (at[-1] - at[0])


def run(tokens: int = 64, rounds: int = 3) -> dict[str, Any]:
    folder = demo_model()
    manifest, _ = build_manifest(scan(folder), lambda done, total: None)
    layers, size = manifest.summary.layers or 1, layer_bytes(folder)
    paces: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="language-pipes-") as place, contextlib.ExitStack() as stack:
        root = Path(place)
        ways: dict[tuple[str, int], Callable[[int], float]] = {}
        for stages in STAGES:
            pipes = stack.enter_context(LanguagePipes(folder, stages, layers, size, root))
            ways["language_pipes", stages] = lambda count, pipes=pipes: their_pace(pipes, count)  # type: ignore[misc]
            (root / str(stages)).mkdir()
            swarm = stack.enter_context(StageSwarm(root / str(stages), folder, stages, tokens + 200))
            ways["nodes", stages] = lambda count, swarm=swarm: swarm.pace(PROMPT, count)  # type: ignore[misc]
        for way in ways.values():
            way(16)
        for _ in range(rounds):
            for name, way in ways.items():
                paces.setdefault(name, []).append(way(tokens))
    medians = {name: statistics.median(found) for name, found in paces.items()}
    return {
        "bench": "language_pipes", "tokens": tokens, "rounds": rounds,
        "tokens_per_second": {f"{name} {stages}": round(found, 2) for (name, stages), found in medians.items()},
        "times_as_fast": {str(stages): round(medians["nodes", stages] / medians["language_pipes", stages], 2) for stages in STAGES},
    }  # fmt: skip


def bars(found: dict[str, Any]) -> list[Bar]:
    return [
        Bar(f"tokens a second over {stages} stages, by Language Pipes'", "≥ 2 ×", f"{times} ×")
        for stages, times in found["times_as_fast"].items()
    ]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
