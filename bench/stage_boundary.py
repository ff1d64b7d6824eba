"""What the network adds per stage boundary: from the end of one worker's computing to the start of the next one's.

Two node processes, SmolLM2-135M cut in two; a boundary is crossed twice per token (the hidden state there, the token back). Idle, and
while a 256 MiB model is fetched by the same node over and over. `python -m bench.stage_boundary [TOKENS] [STAGES]`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model
from node.cli.owner_client import call
from tests.support.synthetic import synthetic_llama

MIB = 1 << 20
_PROMPT = "Tell me a long story about a lighthouse keeper and the sea."


def boundaries(traces: list[Path]) -> list[tuple[float, float]]:
    """(when, seconds) of every boundary crossed by single tokens, over all sessions in the traces."""
    steps: dict[str, list[tuple[int, int, float, float]]] = defaultdict(list)
    for path in traces:
        for line in path.read_text().splitlines() if path.exists() else []:
            step = json.loads(line)
            session, _, stage = step["session"].partition(".")
            steps[session].append((step["position"], int(stage.partition(".")[0]), step["began"], step["ended"]))
    found = []
    for session in steps.values():
        session.sort()
        for before, after in pairwise(session):
            if before[0] > 0:
                found.append((before[3], after[2] - before[3]))
    return found


def spread(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{part}_ms": round(1e3 * cuts[part - 1], 3) for part in (50, 90, 99)} | {"count": len(seconds)}


class Busy:
    """Fetches a model over and over until told to stop; `spans` (began, ended) by the monotonic clock."""

    def __init__(self, swarm: StageSwarm, model: str, folder: Path) -> None:
        self._swarm, self._model, self._folder = swarm, model, folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.fetched = 0

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            wanted = {"model": self._model, "dir": str(self._folder / f"fetched{self.fetched}")}
            call(self._swarm.nodes[0].data_dir, "fetch", wanted, timeout=300.0)
            self.fetched += 1


def run(tokens: int = 300, stages: int = 2) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="stage-boundary-") as place:
        root = Path(place)
        bulk = synthetic_llama(root / "bulk", 256 * MIB, hidden=1024)
        with StageSwarm(root, demo_model(), stages, tokens + 100) as swarm:
            told = swarm.nodes[1].cli("publish", str(bulk), "--name", "bulk", "--compression", "raw", timeout=300.0)
            reply = swarm.ask(_PROMPT, 8)
            began = time.monotonic()
            idle_reply = swarm.ask(_PROMPT, tokens)
            half = time.monotonic()
            with Busy(swarm, told["model_id"], root) as busy:
                swarm.ask(_PROMPT, tokens)
                fetched = busy.fetched
            route = reply.route
        found = boundaries(swarm.traces)
    idle = [seconds for when, seconds in found if began <= when < half]
    loaded = [seconds for when, seconds in found if when >= half]
    pauses = [after - before for before, after in pairwise(idle_reply.at)]
    return {
        "stages": len(route),
        "idle": spread(idle),
        "during a transfer": {**spread(loaded), "fetches": fetched},
        "token_ms": round(1e3 * statistics.median(pauses), 2),
    }


def bars(found: dict[str, Any]) -> list[Bar]:
    return [
        Bar(f"added at a stage boundary, {when}, p{part}", f"≤ {asked} ms", f"{found[when][f'p{part}_ms']} ms")
        for when in ("idle", "during a transfer")
        for part, asked in ((50, 1.0), (99, 3.0))
    ]


def main() -> None:
    print(json.dumps(run(*(int(word) for word in sys.argv[1:]))), flush=True)


if __name__ == "__main__":
    main()
