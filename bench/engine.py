"""The engine's torch path beside transformers' own `generate` in bf16: `python -m bench.engine [ROUNDS] [PART]...`.

SmolLM2-135M, two threads, turn about in one process, medians; figures drift, ratios count. Parts: decode (one sequence), prefill
(128 tokens), aggregate (64 and 100 sequences of mixed lengths), quality (perplexity on this repository's own documents),
memory (of a worker process).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bootstrap.demo_model import demo_model

ASKED = {
    "decode": {"int4": 5.0, "int8": 3.5, "bf16": 2.0},
    "prefill": 1.0,
    "aggregate": {"64": 25.0, "100": 27.0},
    "quality": {"int8": 1.0, "int4": 6.0},
}
PRECISIONS = ("int4", "int8", "bf16")
LAYERS = 30
NEW = 48
PARTS = ("decode", "prefill", "aggregate", "quality", "memory")


class Bench:
    """The models, loaded when first used."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(2)
        self.folder = demo_model()
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.bfloat16).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        self._runners: dict[str, Any] = {}
        self.words: list[int] = self.tokenizer(document())["input_ids"]

    def runner(self, precision: str) -> Any:
        """As the worker would load it."""
        from runtime.runners import lean_runner
        from runtime.self_test import self_test
        from runtime.stage import build_stage
        from tests.runtime.support import read_tensors

        if precision not in self._runners:
            stage = build_stage(self.folder, read_tensors(self.folder / "model.safetensors"), 0, LAYERS, LAYERS, "bf16")
            self_test(stage)
            self._runners[precision], said = lean_runner(stage, precision)
            print(f"  {precision}: {said}", flush=True)
        return self._runners[precision]

    def hf_decode(self, prompt: list[int]) -> float:
        """Seconds a token by `generate`, the prefill left out."""
        import torch

        given = torch.tensor([prompt])
        named = {"attention_mask": torch.ones_like(given), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        both = [timed(lambda new=new: self.model.generate(given, max_new_tokens=new, **named)) for new in (1, NEW + 1)]
        return (both[1] - both[0]) / NEW

    def hf_prefill(self, prompt: list[int]) -> float:
        import torch

        with torch.inference_mode():
            return timed(lambda: self.model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def document() -> str:
    """This project's own words."""
    docs = Path(__file__).resolve().parent.parent / "docs"
    return "\n\n".join((docs / name).read_text() for name in ("ARCHITECTURE.md", "THREATS.md", "OPERATING.md"))


def decode_once(runner: Any, prompt: list[int], new: int) -> float:
    """Seconds a token, greedy, one sequence."""
    from runtime.model_runner import Row

    word = int(runner.run([Row(0, 0, len(prompt), prompt, 1)], None)[0].argmax())
    began = time.perf_counter()
    for position in range(len(prompt), len(prompt) + new):
        word = int(runner.run([Row(0, position, 1, [word], 1)], None)[0].argmax())
    took = time.perf_counter() - began
    runner.release(0)
    return took / new


def decode(bench: Bench, rounds: int) -> dict[str, Any]:
    prompt = bench.words[:64]
    taken: dict[str, list[float]] = {}
    for name in PRECISIONS:
        decode_once(bench.runner(name), prompt, 2)
    for _ in range(rounds):
        taken.setdefault("hf", []).append(bench.hf_decode(prompt))
        for name in PRECISIONS:
            taken.setdefault(name, []).append(decode_once(bench.runner(name), prompt, NEW))
    return ratios(taken, ASKED["decode"])


def ratios(taken: dict[str, list[float]], asked: Any) -> dict[str, Any]:
    """Of each to transformers in the same round; the median of the rounds."""
    found = {
        name: round(statistics.median(hf / own for hf, own in zip(taken["hf"], times, strict=True)), 2)
        for name, times in taken.items()
        if name != "hf"
    }
    return {"asked": asked, "ratio": found, "per_second": {name: round(1 / statistics.median(times), 1) for name, times in taken.items()}}


def prefill(bench: Bench, rounds: int) -> dict[str, Any]:
    from runtime.model_runner import Row

    prompt = bench.words[:128]
    taken: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        taken.setdefault("hf", []).append(bench.hf_prefill(prompt))
        for name in PRECISIONS:
            runner = bench.runner(name)
            taken.setdefault(name, []).append(timed(lambda runner=runner: runner.run([Row(0, 0, 128, prompt, 1)], None)))  # type: ignore[misc]
            runner.release(0)
    return ratios({name: times[1:] for name, times in taken.items()}, ASKED["prefill"])


def aggregate(bench: Bench, rounds: int) -> dict[str, Any]:
    """Tokens a second of all sequences together, each at its own length between 32 and 512, against one of transformers."""
    found: dict[str, Any] = {"asked": ASKED["aggregate"], "ratio": {}}
    for count in (64, 100):
        taken: dict[str, list[float]] = {}
        for name in ("bf16", "int8"):
            room = Crowd(bench, name, count)
            for _ in range(rounds):
                taken.setdefault("hf" if name == "bf16" else "hf again", []).append(bench.hf_decode(bench.words[:64]))
                taken.setdefault(name, []).append(room.step_seconds() / count)
            room.leave()
        own = {name: (taken["hf" if name == "bf16" else "hf again"], taken[name]) for name in ("bf16", "int8")}
        found["ratio"][str(count)] = {
            name: round(statistics.median(hf / mine for hf, mine in zip(*both, strict=True)), 1) for name, both in own.items()
        }
    return found


class Crowd:
    """Sequences that have been prefilled to mixed lengths and go on decoding."""

    def __init__(self, bench: Bench, precision: str, count: int) -> None:
        from runtime.model_runner import Row

        self._runner, self._row = bench.runner(precision), Row
        rng = random.Random(7)
        self._lengths = [rng.randint(32, 500) for _ in range(count)]
        for slot, length in enumerate(self._lengths):
            begin = rng.randrange(len(bench.words) - length)
            self._runner.run([Row(slot, 0, length, bench.words[begin : begin + length], 0)], None)
        self._words = [1] * count

    def step_seconds(self, steps: int = 6) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            rows = [self._row(slot, length, 1, [self._words[slot]], 1) for slot, length in enumerate(self._lengths)]
            self._words = self._runner.run(rows, None).float().argmax(-1).tolist()
            self._lengths = [length + 1 for length in self._lengths]
        return (time.perf_counter() - began) / steps

    def leave(self) -> None:
        for slot in range(len(self._lengths)):
            self._runner.release(slot)


def perplexity(runner: Any, words: list[int], window: int = 256) -> float:
    """Over `words` in windows that know nothing of one another."""
    import torch

    from runtime.model_runner import Row

    lost, counted = 0.0, 0
    for begin in range(0, len(words) - window, window):
        part = words[begin : begin + window]
        logits = runner.run([Row(0, 0, window, part, window)], None).float()
        runner.release(0)
        lost += float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(part[1:]), reduction="sum"))
        counted += window - 1
    return float(torch.tensor(lost / counted).exp())


def quality(bench: Bench, rounds: int) -> dict[str, Any]:
    words = bench.words[: 256 * 12 + 1]
    found = {name: perplexity(bench.runner(name), words) for name in ("bf16", "int8", "int4")}
    worse = {name: round((found[name] / found["bf16"] - 1) * 100, 2) for name in ("int8", "int4")}
    return {
        "asked_percent": ASKED["quality"],
        "worse_percent": worse,
        "perplexity": {name: round(one, 3) for name, one in found.items()},
        "tokens": len(words),
    }


async def worker_memory(folder: Path, precision: str) -> dict[str, float]:
    """MiB of a worker that has loaded the model and ran one token, over what its weights take by formula."""
    from node.worker import Worker
    from protocol.messages import Sampling
    from runtime import interface as api
    from tests.runtime.support import lay_out, load_message, model_files, read_tensors

    scratch = Path(tempfile.mkdtemp(prefix="mf-bench-"))
    worker = Worker(scratch, threads=2, memory=2_000_000_000)
    try:
        await worker.load_text(api.LoadText(model="m", files=model_files(folder)))
        fd, places, length = lay_out(read_tensors(folder / "model.safetensors"))
        message = load_message(places, length, 0, LAYERS, LAYERS, precision)
        loaded = await worker.load_stage(message, [fd])
        os.close(fd)
        await worker.open_sequence(api.OpenSequence(stage=message.stage, session="s", tokens_max=64, sampling=Sampling()))
        await worker.step(api.Step(session="s", epoch=0, position=0, tokens=[1, 2, 3], count=3))
        await worker.close_sequence("s")
        usage = await worker.usage()
        return {"weights": round(loaded.bytes / 2**20, 1), "over": round(usage.base / 2**20, 1)}
    finally:
        await worker.stop()


def memory(bench: Bench, rounds: int) -> dict[str, Any]:
    return {"asked_over_mib": 350, "mib": {name: asyncio.run(worker_memory(bench.folder, name)) for name in PRECISIONS}}


def run(rounds: int = 3, parts: list[str] | None = None) -> dict[str, Any]:
    bench = Bench()
    every: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
        "decode": decode,
        "prefill": prefill,
        "aggregate": aggregate,
        "quality": quality,
        "memory": memory,
    }
    found: dict[str, Any] = {"bench": "engine", "rounds": rounds}
    for name in parts or PARTS:
        found[name] = every[name](bench, rounds)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(json.dumps(run(count, sys.argv[2:] or None)))
