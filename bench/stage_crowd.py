"""Many replies at once through two stages: tokens a second of all together, beside transformers' bf16 `generate` of one.

SmolLM2-135M in bf16, two node processes that share this machine, each computing with THREADS threads, a crowd of completions over HTTP at
the first of them, prompts of mixed lengths, all made to the same number of new tokens; turn about with transformers in one run. "steady"
counts while all decode (when a token came is what the last stage's worker says), "joining" from the first question to the last token.
`python -m bench.stage_crowd [COUNT] [ROUNDS] [NEW] [THREADS]`.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import aiohttp

from bench.bars import Bar
from bench.crowd import pace, prompts
from bench.engine import LAYERS, Bench
from bench.stage_swarm import StageSwarm
from tests.swarm import tools

STAGES, MEMORY, ASKED = 2, 4_000_000_000, 20


async def ask_all(url: str, asked: list[list[int]], new: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(400)) as client:

        async def one(tokens: list[int]) -> None:
            body = {"model": "bench", "prompt": tokens, "max_tokens": new, "temperature": 0}
            async with client.post(f"{url}/v1/completions", json=body) as response:
                answer = await response.json()
            if response.status != 200 or answer["usage"]["completion_tokens"] != new:
                raise RuntimeError(f"{response.status}: {str(answer)[:300]}")

        await asyncio.gather(*map(one, asked))


def rows_in_a_pass(traces: list[Path], began: float, ended: float) -> float:
    """Sessions that a worker computed at once, in the mean: those of a pass begin together."""
    begun = [json.loads(line)["began"] for trace in traces for line in trace.read_text().splitlines()]
    passes = Counter(at for at in begun if began <= at < ended)
    return passes.total() / len(passes)


def processor_seconds(swarm: StageSwarm) -> dict[str, float]:
    """Of the nodes' own processes and of their workers, until now."""
    workers = [pid for node in swarm.nodes if (pid := tools.process_of(node, tools.WORKER)) is not None]
    sides = {"nodes": [node.pid for node in swarm.nodes], "workers": workers}
    return {side: sum(map(tools.cpu_ticks, pids)) / os.sysconf("SC_CLK_TCK") for side, pids in sides.items()}


def token_times(trace: Path, began: float, ended: float) -> list[list[float]]:
    """When the last stage had computed each token of each session that ran between two moments."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in trace.read_text().splitlines():
        step = json.loads(line)
        if began <= step["began"] < ended and f".{LAYERS // STAGES}." in f"{step['session']}.":
            found[step["session"]].append((step["position"], step["ended"]))
    return [[at for _position, at in sorted(steps)] for steps in found.values()]


def run(count: int = 64, rounds: int = 3, new: int = 160, threads: int = 2) -> dict[str, Any]:
    bench = Bench()
    asked = prompts(bench.words, count, new)
    env = {"BENCH_ENDLESS": "1", "BENCH_THREADS": str(threads)}
    alone, spans = list[float](), list[tuple[float, float]]()
    with tempfile.TemporaryDirectory(prefix="stage-crowd-") as place:
        with StageSwarm(Path(place), bench.folder, STAGES, 0, memory=MEMORY, env=env) as swarm:
            asyncio.run(ask_all(swarm.nodes[0].url, asked[:4], 4))
            bench.hf_decode(bench.words[:64])
            before = processor_seconds(swarm)
            for _ in range(rounds):
                alone.append(1 / bench.hf_decode(bench.words[:64]))
                began = time.monotonic()
                asyncio.run(ask_all(swarm.nodes[0].url, asked, new))
                spans.append((began, time.monotonic()))
            after = processor_seconds(swarm)
        rows = statistics.median(rows_in_a_pass(swarm.traces, *span) for span in spans)
        paces = [pace(began, token_times(swarm.traces[-1], began, ended)) for began, ended in spans]
    return {
        "bench": "stage_crowd", "count": count, "rounds": rounds, "new": new, "threads": threads,
        "per_second": {"hf": round(statistics.median(alone), 1), "steady": round(statistics.median(one.steady for one in paces), 1)},
        "ratio": round(statistics.median(one.steady / hf for one, hf in zip(paces, alone, strict=True)), 1),
        "ratio_joining": round(statistics.median(one.joining / hf for one, hf in zip(paces, alone, strict=True)), 1),
        "rows_in_a_pass": round(rows, 1),
        "processor_ms_per_token": {side: round(1e3 * (after[side] - before[side]) / (rounds * count * new), 2) for side in after},
        "steady_s": round(statistics.median(one.window for one in paces), 1),
    }  # fmt: skip


def bars(found: dict[str, Any]) -> list[Bar]:
    what = f"{found['count']} sequences through {STAGES} stages, bf16, by transformers' bf16 alone"
    return [Bar(what, f"≥ {ASKED} ×", f"{found['ratio']} ×"), Bar(f"{what}, joining and prompts too", "", f"{found['ratio_joining']} ×")]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:]))), flush=True)
