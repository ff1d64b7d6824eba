"""SmolLM2-135M over two and three node processes beside one node that runs it whole: tokens a second, ratios, messages at the entry.

Same weights, precision, kernels and threads, equal numbers of layers, no guesses ahead; stand-bys are loaded before; turn about in one run,
medians. A message at the entry is a step frame that it sends to or takes from another node, those of prompts included.
`python -m bench.pipeline [TOKENS] [ROUNDS] [PRECISION]`; bf16 and int4 have bars.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model

PROMPT = "Write a long story about a lighthouse keeper who finds a letter in a bottle."
ASKED = {"bf16": {"2": 0.90, "3": 0.85}, "int4": {"3": 0.70}}
MESSAGES = 2
WARM, WARMING = 96, 2
"""Tokens of a reply that lasts until stand-bys are chosen, and how many such before any counts."""
MEMORY = 1_000_000_000


def frames_at_entry(traces: Sequence[Path]) -> int:
    """Step frames that the first node sent to others and took from them."""
    path = traces[0].with_suffix(".frames")
    return int(path.read_text()) if path.exists() else 0


def run(tokens: int = 96, rounds: int = 3, precision: str = "bf16") -> dict[str, Any]:
    paces: dict[int, list[float]] = {1: [], 2: [], 3: []}
    made: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="pipeline-") as place, contextlib.ExitStack() as stack:
        root = Path(place)
        swarms = {}
        for stages in paces:
            (root / str(stages)).mkdir()
            swarm = StageSwarm(root / str(stages), demo_model(), stages, 0, precision=precision, memory=MEMORY)
            swarms[stages] = stack.enter_context(swarm)
            made[stages] = 0
            for _ in range(WARMING):
                made[stages] += swarm.ask(PROMPT, WARM).tokens[-1]
                swarm.settle()
        for _ in range(rounds):
            for stages, swarm in swarms.items():
                reply = swarm.through(PROMPT, tokens)
                paces[stages].append(reply.pace)
                made[stages] += reply.tokens[-1]
        for swarm in swarms.values():
            swarm.close()
        messages = frames_at_entry(swarms[3].traces) / made[3]
    ratios = {stages: [one / whole for one, whole in zip(paces[stages], paces[1], strict=True)] for stages in (2, 3)}
    return {
        "bench": "pipeline",
        "precision": precision,
        "tokens_per_second": {str(stages): round(statistics.median(found), 2) for stages, found in paces.items()},
        "ratio": {str(stages): round(statistics.median(found), 3) for stages, found in ratios.items()},
        "messages_at_entry_per_token": round(messages, 3),
        "tokens": tokens,
        "rounds": rounds,
    }


def bars(found: dict[str, Any]) -> list[Bar]:
    precision = found["precision"]
    lines = []
    for stages, ratio in found["ratio"].items():
        asked = ASKED.get(precision, {}).get(stages)
        lines.append(Bar(f"{stages} stages at {precision} beside one node's whole run", f"≥ {asked:.2f} ×" if asked else "", f"{ratio} ×"))
    return [*lines, Bar("messages at the entry per token, 3 stages", f"≤ {MESSAGES}", f"{found['messages_at_entry_per_token']}")]


def main() -> None:
    kinds: tuple[Any, ...] = (int, int, str)
    print(json.dumps(run(*(kind(given) for kind, given in zip(kinds, sys.argv[1:], strict=False)))), flush=True)


if __name__ == "__main__":
    main()
