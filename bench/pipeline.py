"""SmolLM2-135M over two and three node processes beside one node that runs it whole: tokens a second, ratios, messages at the entry.

Same weights, precision (bf16), kernels and threads; turn about in one run, medians. Nodes lend just enough memory for their part. A message
at the entry is a step frame that it sends to or takes from another node. `python -m bench.pipeline [TOKENS] [ROUNDS]`.
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

from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model

PROMPT = "Write a long story about a lighthouse keeper who finds a letter in a bottle."


def frames_at_entry(traces: Sequence[Path]) -> int:
    """Step frames that the first node sent to others and took from them."""
    path = traces[0].with_suffix(".frames")
    return int(path.read_text()) if path.exists() else 0


def run(tokens: int = 96, rounds: int = 3) -> dict[str, Any]:
    paces: dict[int, list[float]] = {1: [], 2: [], 3: []}
    with tempfile.TemporaryDirectory(prefix="pipeline-") as place, contextlib.ExitStack() as stack:
        root = Path(place)
        swarms = {}
        for stages in paces:
            (root / str(stages)).mkdir()
            swarms[stages] = stack.enter_context(StageSwarm(root / str(stages), demo_model(), stages, tokens + 200))
            swarms[stages].ask(PROMPT, 4)
        for _ in range(rounds):
            for stages, swarm in swarms.items():
                paces[stages].append(swarm.pace(PROMPT, tokens))
        asked = 4 + rounds * tokens
        for swarm in swarms.values():
            swarm.close()
        messages = frames_at_entry(swarms[3].traces) / asked
    medians = {stages: statistics.median(found) for stages, found in paces.items()}
    return {
        "tokens_per_second": {str(stages): round(found, 2) for stages, found in medians.items()},
        "ratio": {str(stages): round(medians[stages] / medians[1], 3) for stages in (2, 3)},
        "messages_at_entry_per_token": round(messages, 3),
        "tokens": tokens,
        "rounds": rounds,
    }


def main() -> None:
    print(json.dumps(run(*(int(word) for word in sys.argv[1:]))), flush=True)


if __name__ == "__main__":
    main()
