"""Prompt-lookup drafting over slow links: a reply that copies from its prompt, three stages, with guesses and without.

`python -m bench.drafting [DELAY_MS] [TOKENS] [ROUNDS]`: the demonstration model in fp32 (so that both replies have to be equal to the
token), twice three node processes, each node behind a proxy that holds all libp2p traffic back for DELAY_MS (default 50) either way.
Turn about, medians.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model

STAGES, MEMORY, PRECISION, ASKED = 3, 1_500_000_000, "fp32", 4
TEXT = (
    "Repeat this text word for word, and nothing else:\n\nThe lighthouse keeper climbed the ninety-one steps every evening at dusk. "
    "He trimmed the wick, filled the lamp with oil, polished the brass, and wrote the hour into a green notebook. On clear nights he "
    "could see three other lights along the coast; on foggy nights he rang the bell once a minute until the morning came."
)


def run(delay_ms: float = 50.0, tokens: int = 96, rounds: int = 3) -> dict[str, Any]:
    paces: dict[bool, list[float]] = {False: [], True: []}
    texts: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="drafting-") as place, contextlib.ExitStack() as stack:
        swarms = {}
        for guesses in paces:
            root = Path(place) / str(guesses)
            root.mkdir()
            swarm = StageSwarm(root, demo_model(), STAGES, 0, precision=PRECISION, memory=MEMORY, guesses=guesses, delay=delay_ms / 1_000)
            swarms[guesses] = stack.enter_context(swarm)
            swarm.ask(TEXT, 4)
        for _ in range(rounds):
            for guesses, swarm in swarms.items():
                reply = swarm.through(TEXT, tokens)
                paces[guesses].append(reply.pace)
                texts.add(reply.text)
                made = reply.tokens[-1]
    on, off = statistics.median(paces[True]), statistics.median(paces[False])
    return {
        "bench": "drafting",
        "delay_ms": delay_ms,
        "tokens": made,
        "equal": len(texts) == 1,
        "ms_per_token": {"on": round(1e3 / on, 1), "off": round(1e3 / off, 1)},
        "ratio": round(on / off, 2),
        "rounds": rounds,
    }


def bars(found: dict[str, Any]) -> list[Bar]:
    what = f"a copying prompt over links of {found['delay_ms']:.0f} ms, {STAGES} stages"
    return [
        Bar(f"{what}: tokens a second with guesses by those without", f"≥ {ASKED} ×", f"{found['ratio']} ×"),
        Bar(f"{what}: replies equal", "yes", "yes" if found["equal"] else "no"),
    ]


if __name__ == "__main__":
    print(json.dumps(run(*(kind(given) for kind, given in zip((float, int, int), sys.argv[1:], strict=False)))), flush=True)
