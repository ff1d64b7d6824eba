"""llama.cpp as this product's engine beside llama.cpp alone: `python -m bench.llama [ROUNDS] [PART]...`.

SmolLM2-135M, two threads, the same file of weights, turn about in one run, medians; ratios count. Parts:

    whole      a reply made by a worker process of this product, through llama.cpp and through its own kernels at as many bits or fewer,
               beside a loop of `llama_decode` alone, as llama-bench runs it
    stages     replies over one, two and three node processes, hidden states over the product's network
    together   several sequences, through llama.cpp and through torch: what `auto` goes by
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.pipeline import MEMORY, WARM, WARMING
from bench.stage_swarm import StageSwarm
from bench.whole_worker import WholeWorker
from bootstrap.demo_model import demo_model
from runtime.engine_choice import torch_precision

PRECISIONS = ("q8_0", "q4_1", "bf16")
PARTS = ("whole", "stages", "together")
LAYERS, PROMPT, NEW = 30, 32, 128
QUESTION = "Write a long story about a lighthouse keeper who finds a letter in a bottle."
ASKED = {"whole": 0.95, "2": 0.88, "3": 0.83}


class Alone:
    """`llama_decode` in a process of its own, in the environment it has by itself: no sampling, no words, no other threads' settings."""

    def __init__(self, file: Path) -> None:
        command = [sys.executable, "-m", "bench.llama", "--alone", str(file)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept)
        self.pace()

    def pace(self) -> float:
        """Tokens a second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def alone(file: Path) -> None:
    """Answers each line on standard input with tokens a second."""
    import numpy as np

    from runtime.llama.library import Batch, library

    llama = library()
    params = llama.model_params()
    params.n_gpu_layers = 0
    model = llama.model_load_from_file(os.fsencode(file), params)
    context = llama.context_params()
    context.n_ctx = 256
    context.n_threads = context.n_threads_batch = 2
    made = llama.init_from_model(model, context)
    memory = llama.get_memory(made)
    token, position = np.zeros(PROMPT, np.int32), np.zeros(PROMPT, np.int32)
    wanted, ones, zero = np.zeros(PROMPT, np.int8), np.ones(PROMPT, np.int32), np.zeros(1, np.int32)
    lists = np.full(PROMPT, zero.ctypes.data, np.uint64)
    places = [array.ctypes.data for array in (position, ones, lists, wanted)]

    def decode(first: int, count: int) -> None:
        position[:count] = np.arange(first, first + count)
        token[:count] = [(37 * at) % 40_000 for at in range(first, first + count)]
        wanted[count - 1] = 1
        if llama.decode(made, Batch(count, token.ctypes.data, None, *places)) != 0:
            raise RuntimeError(llama.why())
        wanted[count - 1] = 0

    for _line in sys.stdin:
        llama.memory_seq_rm(memory, 0, 0, -1)
        decode(0, PROMPT)
        decode(PROMPT, 1)
        began = time.perf_counter()
        for at in range(PROMPT + 1, PROMPT + NEW):
            decode(at, 1)
        print((NEW - 1) / (time.perf_counter() - began), flush=True)


def write_file(folder: Path, precision: str) -> Path:
    from transformers import AutoConfig

    from runtime.llama.stage_file import Shape, write_stage
    from tests.runtime.support import read_tensors

    path = folder / f"{precision}.gguf"
    shape = Shape.of(AutoConfig.from_pretrained(demo_model()))
    write_stage(path, shape, read_tensors(demo_model() / "model.safetensors"), (0, LAYERS), LAYERS, precision)
    return path


async def own_pace(worker: WholeWorker, number: int) -> float:
    """Tokens a second of a greedy reply, its text made too."""
    at = await worker.reply([(37 * place + number) % 40_000 for place in range(PROMPT)], NEW)
    return (len(at) - 1) / (at[-1] - at[0])


def whole(rounds: int) -> dict[str, Any]:
    return asyncio.run(_whole(rounds))


async def _whole(rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"asked": ASKED["whole"], "ratio": {}, "per_second": {}}
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory(prefix="mf-llama-") as place:
            other = Alone(write_file(Path(place), precision))
            try:
                async with (
                    WholeWorker(Path(place) / "llama", precision, engine="llama") as mine,
                    WholeWorker(Path(place) / "torch", torch_precision(precision)) as own,
                ):
                    rows = [(other.pace(), await own_pace(mine, number), await own_pace(own, number)) for number in range(rounds)]
            finally:
                other.close()
        for at, name in enumerate(("llama", "torch"), 1):
            found["ratio"].setdefault(precision, {})[name] = round(statistics.median(row[at] / row[0] for row in rows), 3)
        found["per_second"][precision] = [round(statistics.median(column), 1) for column in zip(*rows, strict=True)]
    return found


def stages(rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"asked": ASKED, "ratio": {}, "per_second": {}}
    for precision in PRECISIONS:
        paces: dict[int, list[float]] = {1: [], 2: [], 3: []}
        with tempfile.TemporaryDirectory(prefix="mf-llama-") as place, contextlib.ExitStack() as stack:
            swarms = {}
            for count in paces:
                root = Path(place) / str(count)
                root.mkdir()
                swarms[count] = stack.enter_context(
                    StageSwarm(root, demo_model(), count, 0, precision=precision, engine="llama", memory=MEMORY)
                )
                for _ in range(WARMING):
                    swarms[count].ask(QUESTION, WARM)
                    swarms[count].settle()
            for _ in range(rounds):
                for count, swarm in swarms.items():
                    paces[count].append(swarm.pace(QUESTION, NEW))
        medians = {count: statistics.median(each) for count, each in paces.items()}
        ratios = {count: [one / base for one, base in zip(paces[count], paces[1], strict=True)] for count in (2, 3)}
        found["ratio"][precision] = {str(count): round(statistics.median(each), 3) for count, each in ratios.items()}
        found["per_second"][precision] = {str(count): round(one, 1) for count, one in medians.items()}
        print(f"  {precision}: {found['per_second'][precision]}", flush=True)
    return found


def together(rounds: int) -> dict[str, Any]:
    """In this process; torch's threads wait as the worker's do only where this was started with the same settings."""
    from bench.engine import Bench, Crowd
    from runtime.llama.engine import build_llama
    from runtime.stage import build_stage
    from tests.runtime.support import read_tensors

    bench, found = Bench(), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="mf-llama-") as place:
        for precision in ("bf16", "q8_0", "q4_1"):
            tensors = read_tensors(demo_model() / "model.safetensors")
            stage = build_stage(demo_model(), dict(tensors), 0, LAYERS, LAYERS, "bf16")
            bench._runners[f"llama {precision}"], _ = build_llama(stage, tensors, precision, Path(place), 2)
        for count in (1, 2, 4, 8, 16):
            taken: dict[str, list[float]] = {}
            for name in ("llama bf16", "bf16", "llama q8_0", "int8", "llama q4_1", "int4"):
                crowd = Crowd(bench, name, count)
                taken[name] = [crowd.step_seconds() for _ in range(rounds)]
                crowd.leave()
            found[str(count)] = {name: round(count / statistics.median(each), 1) for name, each in taken.items()}
    return found


def run(rounds: int = 3, parts: list[str] | None = None) -> dict[str, Any]:
    every = {"whole": whole, "stages": stages, "together": together}
    found: dict[str, Any] = {"bench": "llama", "rounds": rounds}
    for name in parts or PARTS:
        found[name] = every[name](rounds)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def bars(found: dict[str, Any]) -> list[Bar]:
    lines = [
        Bar(
            f"whole model at {precision}, by {max(ratios, key=ratios.get)}, beside llama.cpp alone",
            f"≥ {ASKED['whole']} ×",
            f"{max(ratios.values())} ×",
        )
        for precision, ratios in found.get("whole", {}).get("ratio", {}).items()
    ]
    for precision, ratios in found.get("stages", {}).get("ratio", {}).items():
        lines += [
            Bar(f"{count} stages at {precision} beside one node's whole run", f"≥ {ASKED[count]} ×", f"{ratio} ×")
            for count, ratio in ratios.items()
        ]
    return lines


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        alone(Path(sys.argv[2]))
    else:
        print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2:] or None)))
