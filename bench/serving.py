"""A hundred chats at once over HTTP beside the engine alone with the same hundred.

`python -m bench.serving [CHATS] [TOKENS] [PRECISION]`: a node with the demonstration model and a client that streams all chats at once,
then the same prompts and lengths given to a worker process directly, torch computing in both. Time from the first question to the last
token of all; Jain's index over the chats' tokens a second (1: all alike); what the worker's PSS came to beyond an idle worker's, beside
what its sessions take by formula and what it may.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from copy import copy
from pathlib import Path
from typing import Any

import aiohttp

from bench.bars import Bar
from bench.memory import Peak
from bootstrap.demo_model import demo_model
from node.worker import Worker
from protocol.messages import Sampling
from runtime import interface as api
from tests.runtime.support import lay_out, load_message, model_files, read_tensors
from tests.support.processes import Node
from tests.support.wait import wait_until

MEMORY = 3_000_000_000
LAYERS = 30
THREADS = os.cpu_count() or 1
LOOK_EVERY = 2.0
SUBJECTS = ("rivers", "bread", "the moon", "glass", "trains", "bees", "salt", "clocks", "paper", "wind")


def question(number: int) -> list[dict[str, Any]]:
    subject, more = SUBJECTS[number % len(SUBJECTS)], SUBJECTS[number // len(SUBJECTS) % len(SUBJECTS)]
    return [
        {"role": "user", "content": f"Question {number}: what has {subject} to do with {more}? Take your time and explain it at length."}
    ]


def jain(rates: list[float]) -> float:
    return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))


def summary(begun: float, ends: list[float], made: list[int], failed: int) -> dict[str, Any]:
    seconds = max(ends) - begun
    rates = [count / (end - begun) for count, end in zip(made, ends, strict=True)]
    found = {"seconds": round(seconds, 2), "tokens": sum(made), "tokens_per_second": round(sum(made) / seconds, 1)}
    return found | {"failed": failed, "jain": round(jain(rates), 4)}


async def over_http(url: str, chats: int, tokens: int) -> dict[str, Any]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(300)) as client:

        async def chat(number: int, most: int) -> tuple[float, int]:
            body = {
                "model": "bench",
                "messages": question(number),
                "max_tokens": most,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            made = 0
            async with client.post(f"{url}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    raise RuntimeError(f"{response.status}: {await response.text()}")
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise RuntimeError(str(event["error"]))
                        made = (event.get("usage") or {}).get("completion_tokens", made)
            return time.perf_counter(), made

        await chat(0, 4)
        begun = time.perf_counter()
        done = await asyncio.gather(*(chat(number, tokens) for number in range(chats)), return_exceptions=True)
        await asyncio.sleep(6.0)  # the node asks its worker every five seconds
        async with client.get(f"{url}/metrics") as response:
            figures = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line.startswith("mf_engine_"))
    good = [one for one in done if not isinstance(one, BaseException)]
    for fault in {str(one) for one in done if isinstance(one, BaseException)}:
        print(fault, file=sys.stderr)
    passes = {"passes": int(float(figures["mf_engine_passes"])), "pass_seconds": round(float(figures["mf_engine_pass_seconds"]), 2)}
    return summary(begun, [end for end, _made in good], [made for _end, made in good], len(done) - len(good)) | passes


async def alone(folder: Path, scratch: Path, chats: int, tokens: int, precision: str) -> dict[str, Any]:
    worker = Worker(scratch, threads=THREADS, memory=MEMORY)
    try:
        text = await worker.load_text(api.LoadText(model="m", files=model_files(folder)))
        fd, places, length = lay_out(read_tensors(folder / "model.safetensors"))
        message = load_message(places, length, 0, LAYERS, LAYERS, precision)
        await worker.load_stage(message, [fd])
        os.close(fd)
        prompts = [await worker.encode_chat("m", question(number)) for number in range(chats)]

        async def chat(number: int, most: int) -> tuple[float, int]:
            prompt, made = prompts[number], 0
            asked = api.Generate(
                stage=message.stage,
                session=str(number),
                tokens=prompt,
                tokens_max=len(prompt) + most,
                new_max=most,
                stop_tokens=text.eos,
                sampling=Sampling(),
            )
            async for note in worker.generate(asked):
                made += len(note.tokens) if isinstance(note, api.Made) else 0
            return time.perf_counter(), made

        await chat(0, 4)
        assert worker.pid is not None
        idle = copy(await worker.usage())
        begun = time.perf_counter()
        with Peak(worker.pid, LOOK_EVERY) as peak:
            asking = asyncio.gather(*(chat(number, tokens) for number in range(chats)))
            await asyncio.sleep(1.0)
            full = copy(await worker.usage())
            done = await asking
        last = await worker.usage()
    finally:
        await worker.stop()
    memory = {
        "weights": full.weights,
        "kv": full.kv,
        "activations": full.activations,
        "most": MEMORY,
        "idle": idle.base + idle.weights,
        "peak": peak.bytes,
    }
    found = summary(begun, [end for end, _made in done], [made for _end, made in done], 0)
    return found | {
        "memory": memory,
        "passes": last.passes,
        "rows": round(last.rows / last.passes, 1),
        "pass_seconds": round(last.seconds, 2),
    }


def run(chats: int = 100, tokens: int = 48, precision: str = "bf16") -> dict[str, Any]:
    folder = demo_model()
    with tempfile.TemporaryDirectory() as scratch:
        node = Node(Path(scratch) / "node", "--max-memory", str(MEMORY), "--engine", "torch", env={"MF_AUDITS": "false"})
        node.start()
        try:
            node.cli("publish", str(folder), "--name", "bench", "--compression", "raw", timeout=300.0)
            wait_until(lambda: node.cli("models", "bench")["models"] != [], 20.0, "the model known")
            http = asyncio.run(over_http(node.url, chats, tokens))
        finally:
            node.stop()
        engine = asyncio.run(alone(folder, Path(scratch) / "worker", chats, tokens, precision))
    return {"chats": chats, "tokens": tokens, "http": http, "engine": engine, "ratio": round(http["seconds"] / engine["seconds"], 3)}


def bars(found: dict[str, Any]) -> list[Bar]:
    what, http, memory = f"{found['chats']} chats over HTTP", found["http"], found["engine"]["memory"]
    promised = memory["kv"] + memory["activations"]
    return [
        Bar(f"{what}, their time by the engine's alone", "≤ 1.4 ×", f"{found['ratio']} ×"),
        Bar(f"{what}, failures", "0", str(http["failed"])),
        Bar(f"{what}, Jain's index", "≥ 0.9", str(http["jain"])),
        Bar(
            f"worker's PSS at {found['chats']} sequences over its idle one",
            f"≤ {promised >> 20} MiB by formula",
            mib(memory["peak"] - memory["idle"]),
        ),
        Bar("what it holds by formula", f"≤ {mib(memory['most'])} (--max-memory)", mib(memory["weights"] + promised)),
        Bar("its PSS", f"≤ {mib(memory['most'])} and 350 MiB of its own", mib(memory["peak"])),
    ]


def mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


if __name__ == "__main__":
    kinds: tuple[Any, ...] = (int, int, str)
    print(json.dumps(run(*(kind(given) for kind, given in zip(kinds, sys.argv[1:], strict=False)))), flush=True)
