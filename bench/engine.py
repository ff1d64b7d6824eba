"""The engine's torch path beside transformers' own `generate` in bf16: `python -m bench.engine [ROUNDS] [PART]...`.

SmolLM2-135M, two threads, turn about in one run, medians; figures drift, ratios count. Parts: decode (one sequence), prefill
(128 tokens), aggregate (64 and 100 sequences of mixed lengths), quality (perplexity on this repository's own documents),
memory (of a worker process). What is asked of is a worker process: scheduler, sampler, text and channel are in its figures. "runner" is
what computes in it, by itself and without choosing tokens. An aggregate is of the time in which all decode; "joining" counts from the first
question to the last token, prompts in it.
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
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.crowd import LONGEST, pace, prompts
from bench.whole_worker import LAYERS, WholeWorker
from bootstrap.demo_model import demo_model
from node.worker_process import kernels_folder
from runtime.native.kernels import FOLDER

ASKED: dict[str, Any] = {
    "decode": {"int4": 5.0, "int8": 3.5, "bf16": 2.0},
    "prefill": 1.0,
    "aggregate": {"64": 25.0, "100": 27.0},
    "quality": {"int8": 1.0, "int4": 6.0},
}
PRECISIONS = ("int4", "int8", "bf16")
CROWDS = ("int8", "bf16")
NEW, CROWD_NEW = 48, 176
PARTS = ("decode", "prefill", "aggregate", "quality", "memory")


class Bench:
    """The models, loaded when first used."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        os.environ[FOLDER] = kernels_folder()
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
    return asyncio.run(_decode(bench, rounds))


async def _decode(bench: Bench, rounds: int) -> dict[str, Any]:
    prompt = bench.words[:64]
    taken: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mf-bench-")))
        workers = {name: await stack.enter_async_context(WholeWorker(place / name, name)) for name in PRECISIONS}
        for name in PRECISIONS:
            decode_once(bench.runner(name), prompt, 2)
        for _ in range(rounds):
            taken.setdefault("hf", []).append(bench.hf_decode(prompt))
            for name, worker in workers.items():
                at = await worker.reply(prompt, NEW + 1)
                taken.setdefault(name, []).append((at[-1] - at[0]) / NEW)
                taken.setdefault(f"runner {name}", []).append(decode_once(bench.runner(name), prompt, NEW))
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
    return {"asked": ASKED["aggregate"], "ratio": {str(count): asyncio.run(_aggregate(bench, rounds, count)) for count in (64, 100)}}


async def _aggregate(bench: Bench, rounds: int, count: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {}
    asked = prompts(bench.words, count, CROWD_NEW)
    for name in CROWDS:
        with tempfile.TemporaryDirectory(prefix="mf-bench-") as place:
            async with WholeWorker(Path(place), name) as worker:
                for _ in range(rounds):
                    hf = bench.hf_decode(bench.words[:64])
                    began = time.monotonic()
                    found = pace(began, await worker.replies(asked, CROWD_NEW))
                    taken.setdefault(name, []).append(found.steady * hf)
                    taken.setdefault(f"joining {name}", []).append(found.joining * hf)
                    print(
                        f"  {count} together in {name}: {found.steady * hf:.1f} x, joining {found.joining * hf:.1f} x",
                        file=sys.stderr,
                        flush=True,
                    )
        crowd = Crowd(bench, name, count)
        for _ in range(rounds):
            hf = bench.hf_decode(bench.words[:64])
            taken.setdefault(f"runner {name}", []).append(hf * count / crowd.step_seconds())
        crowd.leave()
    return {name: round(statistics.median(each), 1) for name, each in taken.items()}


class Crowd:
    """Sequences that have been prefilled to mixed lengths and go on decoding."""

    def __init__(self, bench: Bench, precision: str, count: int) -> None:
        from runtime.model_runner import Row

        self._runner, self._row = bench.runner(precision), Row
        rng = random.Random(7)
        self._lengths = [rng.randint(32, LONGEST - 12) for _ in range(count)]
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


async def worker_memory(precision: str) -> dict[str, float]:
    """MiB of a worker that has loaded the model and made a few tokens, over what its weights take by formula."""
    with tempfile.TemporaryDirectory(prefix="mf-bench-") as place:
        async with WholeWorker(Path(place), precision) as worker:
            usage = await worker.usage()
            return {"weights": round(usage.weights / 2**20, 1), "over": round(usage.base / 2**20, 1)}


def memory(bench: Bench, rounds: int) -> dict[str, Any]:
    return {"asked_over_mib": 350, "mib": {name: asyncio.run(worker_memory(name)) for name in PRECISIONS}}


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


def bars(found: dict[str, Any]) -> list[Bar]:
    by = "by transformers' bf16"
    lines = list[Bar]()
    for name, ratio in found.get("decode", {}).get("ratio", {}).items():
        asked = ASKED["decode"].get(name)
        lines.append(Bar(f"decode at {name}, one sequence, {by}", f"≥ {asked} ×" if asked else "", f"{ratio} ×"))
    for name, ratio in found.get("prefill", {}).get("ratio", {}).items():
        lines.append(Bar(f"prefill of 128 tokens at {name}, {by}", f"≥ {ASKED['prefill']} ×", f"{ratio} ×"))
    for count, ratios in found.get("aggregate", {}).get("ratio", {}).items():
        for name, ratio in ratios.items():
            asked = f"≥ {ASKED['aggregate'][count]} ×" if name in CROWDS else ""
            lines.append(Bar(f"{count} sequences together, {name}, {by} alone", asked, f"{ratio} ×"))
    for name, worse in found.get("quality", {}).get("worse_percent", {}).items():
        lines.append(Bar(f"perplexity at {name} over bf16's", f"≤ {ASKED['quality'][name]} %", f"{worse} %"))
    for name, sizes in found.get("memory", {}).get("mib", {}).items():
        lines.append(Bar(f"worker's PSS over its weights at {name}, idle", "≤ 350 MiB", f"{sizes['over']} MiB"))
    return lines


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(json.dumps(run(count, sys.argv[2:] or None)))
