"""Layers compiled for single rows beside the same layers as they are, and `generate` in bf16: `python -m bench.compiled [ROUNDS]`.

SmolLM2-135M, two threads, one sequence, turn about in one run, medians; the runner by itself, without scheduler and channel. Compiling
is timed too, for one core.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.engine import NEW, PRECISIONS, Bench, decode_once
from runtime.compiled_shape import PARTS

KNOWN = "≥ 1.26 × known of torch.compile"


def measure(bench: Bench, precision: str, rounds: int) -> dict[str, Any]:
    from runtime import compiled, compiling
    from runtime.lean_shape import Unlike

    runner = bench.runner(precision)
    shape = compiled.shape_of(runner)
    if shape is None:
        return {"said": "its matrices lie in an order that the compiler doesn't know"}
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        for part in PARTS:
            compiling.compile_part(shape, part, Path(place))
        seconds = time.perf_counter() - began
        try:
            said = compiled.take(runner, Path(place))
        except Unlike as unlike:
            return {"said": str(unlike), "compiling seconds": round(seconds, 1)}
    made, prompt = runner.compiled, bench.words[:64]
    took: dict[str, list[float]] = {"hf": [], "as it is": [], "compiled": []}
    for _ in range(rounds):
        took["hf"].append(bench.hf_decode(prompt))
        for name, taken in (("as it is", None), ("compiled", made)):
            runner.compiled = taken
            took[name].append(decode_once(runner, prompt, NEW))
    middle = {name: statistics.median(found) for name, found in took.items()}
    return {
        "said": said,
        "compiling seconds": round(seconds, 1),
        "per second": {name: round(1 / found, 1) for name, found in middle.items()},
        "ratio": round(middle["as it is"] / middle["compiled"], 2),
        "beside hf": round(middle["hf"] / middle["compiled"], 2),
    }


def bars(found: dict[str, Any]) -> list[Bar]:
    return [
        Bar(f"compiled layers, one sequence, {precision}", KNOWN, f"{told['ratio']} ×, {told['compiling seconds']} s to compile")
        for precision, told in found.items()
        if "ratio" in told
    ]


def run(rounds: int = 3) -> dict[str, Any]:
    bench = Bench()
    return {precision: measure(bench, precision, rounds) for precision in PRECISIONS}


def main() -> None:
    for precision, told in run(int(sys.argv[1]) if len(sys.argv) > 1 else 3).items():
        print(f"{precision}: {json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main()
