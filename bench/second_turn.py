"""Time to the first token of a conversation's second turn through stages, beside the same prompt where nothing of it is there.

SmolLM2-135M in bf16, node processes of two threads each that share this machine, over the product's own network; a history of 1,500
tokens, and a question of 24 behind it. "anew" has another first token than the conversation, so that nothing is in common and all is
computed: what every second turn costs without reuse. Turn about in one run, medians. `python -m bench.second_turn [ROUNDS] [HISTORY]`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from bench.bars import Bar
from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model

STAGES, MEMORY, REPLY, QUESTION = (2, 3), 2_000_000_000, 16, 24
WORDS = range(1_000, 40_000)


async def ask(client: aiohttp.ClientSession, url: str, prompt: list[int], new: int) -> dict[str, float]:
    """Milliseconds by the names of `Server-Timing`."""
    body = {"model": "bench", "prompt": prompt, "max_tokens": new, "temperature": 0}
    async with client.post(f"{url}/v1/completions", json=body) as response:
        answer = await response.json()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {str(answer)[:300]}")
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.e+-]+)", response.headers["Server-Timing"])}


async def turns(url: str, history: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Of each round the second turn that goes on, and the one that is made anew."""
    rng, found = random.Random(history), dict[str, list[dict[str, float]]](on=[], anew=[])
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(300)) as client:
        for number in range(rounds + 1):
            told = [rng.choice(WORDS) for _ in range(history)]
            await ask(client, url, told, REPLY)
            second = [*told, *(rng.choice(WORDS) for _ in range(QUESTION))]
            on = await ask(client, url, second, 1)
            anew = await ask(client, url, [rng.choice(WORDS), *second[1:]], 1)
            if number:  # the first loads the stages
                found["on"].append(on)
                found["anew"].append(anew)
            print(f"  round {number}: {on['first_token']:g} ms, anew {anew['first_token']:g} ms", flush=True)
    return found


def run(rounds: int = 5, history: int = 1_500) -> dict[str, Any]:
    folder, found = demo_model(), dict[str, Any](bench="second_turn", rounds=rounds, history=history)
    for count in STAGES:
        with (
            tempfile.TemporaryDirectory(prefix="second-turn-") as place,
            StageSwarm(Path(place), folder, count, 0, memory=MEMORY) as swarm,
        ):
            sides = asyncio.run(turns(swarm.nodes[0].url, history, rounds))
        first = {side: round(statistics.median(one["first_token"] for one in told), 1) for side, told in sides.items()}
        found[str(count)] = {
            "first_token_ms": first,
            "ratio": round(first["anew"] / first["on"], 1),
            "prefill_ms": {side: round(statistics.median(one["prefill"] for one in told), 1) for side, told in sides.items()},
        }
    return found


def bars(found: dict[str, Any]) -> list[Bar]:
    what = f"first token of a second turn, {found['history']} tokens of history"
    lines = []
    for count in ("2", "3"):
        one = found[count]
        on, anew = one["first_token_ms"]["on"], one["first_token_ms"]["anew"]
        lines.append(Bar(f"{what}, {count} stages, by the same computed anew", "", f"{on:g} ms, {anew:g} ms anew: {one['ratio']} × sooner"))
    return lines


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:]))), flush=True)
