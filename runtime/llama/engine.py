"""A llama.cpp runner out of a stage that torch has loaded, tried against it before it is used.

torch stays the reference: its own forward of the same layers gives what a few tokens must come to, at once and in steps. How
near a precision has to come was measured on the demo model, whole and cut (root mean square of the difference over the row's
spread: bf16 0.10, q8_0 0.19, q4_1 0.17 at most) and is asked with room to spare; a wrong rotary, a turned head or a lost
layer is off by more than 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from protocol.errors import BadInput, MfError, Unavailable
from runtime.llama.library import library
from runtime.llama.runner import LlamaRunner
from runtime.llama.stage_file import TYPES, Shape, write_stage
from runtime.model_runner import Row
from runtime.stage import Stage

PRECISIONS = tuple(TYPES)
ALLOWED = {"bf16": 0.3, "q8_0": 0.5, "q4_1": 0.7}
_PROMPT, _STEPS = 9, 3


def build_llama(stage: Stage, tensors: Mapping[str, torch.Tensor], precision: str, scratch: Path, threads: int) -> tuple[LlamaRunner, str]:
    """The runner and what was tried. `BadInput` or `Unavailable` with the reason why torch must run this stage; nothing is left then."""
    if precision not in TYPES:
        raise BadInput(f"llama.cpp: precision {precision[:16]!r} isn't one of {', '.join(TYPES)}")
    shape, span = Shape.of(stage.config), (stage.first, stage.end)
    llama = library()
    path = scratch / f"llama-{stage.first}-{stage.end}-{precision}.gguf"
    try:
        size = write_stage(path, shape, tensors, span, stage.layers, precision)
        words = tensors.get("model.embed_tokens.weight") if stage.first == 0 and stage.end < stage.layers else None
        runner = LlamaRunner(llama, path, shape, span, stage.layers, precision, size, threads, words)
    except OSError as error:
        raise Unavailable(f"llama.cpp's file can't be written: {error.strerror}") from error
    finally:
        # What is mapped stays mapped; the disk gets it back with the process at the latest.
        path.unlink(missing_ok=True)
    try:
        return runner, _try(stage, runner)
    except MfError:
        runner.close()
        raise


def _try(stage: Stage, runner: LlamaRunner) -> str:
    """A prompt and a few steps through both."""
    generator = torch.Generator().manual_seed(17)
    count = _PROMPT + _STEPS
    tokens = torch.randint(0, stage.vocabulary, (count,), generator=generator)
    rows = torch.randn(count, stage.hidden, generator=generator).to(stage.dtype)
    worst = 0.0
    cache = stage.new_cache()
    for first, end in [(0, _PROMPT), *((at, at + 1) for at in range(_PROMPT, count))]:
        stage.tell_position(cache, first)
        with torch.inference_mode():
            given = (tokens[first:end], None) if stage.first == 0 else (None, rows[first:end])
            wanted = stage.forward(cache, *given)
        row = Row(0, first, end - first, tokens[first:end].tolist() if stage.first == 0 else None, 1)
        made = runner.run([row], None if stage.first == 0 else rows[first:end])
        worst = max(worst, _apart(wanted[-1] if wanted.ndim > 1 else wanted, made[-1]))
    runner.release(0)
    allowed = ALLOWED[runner.precision]
    if not worst <= allowed:
        raise Unavailable(f"llama.cpp's result for layers {stage.first}..{stage.end} is {worst:.2f} spreads off, {allowed} are allowed")
    return f"llama.cpp: {count} tokens within {worst:.3f} of the spread of torch's"


def _apart(wanted: torch.Tensor, made: torch.Tensor) -> float:
    """Root mean square of the difference over the spread of what was wanted; infinite where one isn't finite."""
    difference = float((wanted.float() - made.float()).square().mean().sqrt() / wanted.float().std().clamp_min(1e-9))
    return difference if math.isfinite(difference) else math.inf
