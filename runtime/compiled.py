"""The compiled form of a lean runner's layers, for a row by itself: taken when it is there, believed when it gives what the layers give.

Problem: at one token a pass a small model's many small steps between the matrices take up to a third of a layer's time beside attention
(int8, SmolLM2's widths: 350 microseconds, 245 without them; whole replies came 1.08 to 1.19 times as fast). Choice: torch's ahead-of-time
compiler fuses them, in a process of its own (runtime/compiling.py); what it leaves is a library with one function, which this process
maps. It computes one row of one sequence, by far the commonest pass of somebody who asks alone; everything else stays as it is. For
each layer two calls, around attention (runtime/compiled_piece.py).

Rejected: compiling in the worker (its sandbox starts nothing, and half a minute would pass without an answer), the whole stage in one
(an artifact for each cut and depth; not tried), torch's package format (its loader unpacks into a folder that the sandbox
doesn't know).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from protocol.errors import BadInput
from runtime import interface as api
from runtime import lean_shape
from runtime.compiled_shape import ACTS, PARTS, LayerShape, name_of
from runtime.lean import Layer, LeanRunner, OneRow
from runtime.lean_pass import Alone, Together
from runtime.lean_shape import Unlike
from runtime.model_runner import Row

_ROWS = 12
_LARGEST = 64 << 20
_APART, _MOST = 0.06, 0.5
"""Share of what was added by which half of the rows, and any of them, may differ: lean_check.py says why some may more."""
Tables = dict[str, tuple[torch.Tensor, torch.Tensor]]


def shape_of(runner: object) -> LayerShape | None:
    """What a compiled form would be made for; None where there can't be one: another runner or device, layers unlike each other, matrices
    in an order of bytes that the compiler doesn't know."""
    if not isinstance(runner, LeanRunner) or runner.dtype != torch.bfloat16:
        return None
    described = {_described(step) for step in runner.steps}
    decoder, act = runner.decoder, next((name for name, act in lean_shape.ACTS.items() if act is runner.decoder.act), None)
    if len(described) != 1 or act not in ACTS:
        return None
    [(stored, biased, head_norm, sandwich, inner)] = described
    if stored is None:
        return None
    return LayerShape(
        hidden=runner.hidden,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        inner=inner,
        rotated=runner.rotated,
        eps=decoder.eps,
        act=act,
        stored=stored,
        biased=biased,
        head_norm=head_norm,
        sandwich=sandwich,
    )


def compilable(runner: object) -> api.Compilable | None:
    shape = shape_of(runner)
    return (
        None
        if shape is None
        else api.Compilable(name=name_of(shape, str(torch.__version__), torch.backends.cpu.get_cpu_capability()), shape=shape)
    )


def _described(step: Layer) -> tuple[Any, Any, bool, bool, int]:
    """Stored forms (None: one that can't be compiled), which have a bias, whether there are norms of heads and after, inner width."""
    found = [one.one_row() for one in step.matrices()]
    stored = None if any(one is None for one in found) else tuple(one[0] for one in found if one is not None)
    norms = step.norms()
    biased = tuple(one.bias is not None for one in step.matrices())
    return stored, biased, norms["heads"] is not None, norms["after_mlp"] is not None, step.inner


class Compiled:
    """Both parts, with every layer's tensors laid out once."""

    def __init__(self, parts: dict[str, Any], steps: list[Layer]) -> None:
        self._enter, self._leave = parts["enter"], parts["leave"]
        self._layers = [(step.kind, *_tensors(step)) for step in steps]

    def __call__(self, x: torch.Tensor, group: Alone | Together, tables: Tables) -> torch.Tensor:
        for number, (kind, entering, leaving) in enumerate(self._layers):
            heads = self._enter([x, *tables[kind], *entering])[0]
            x = self._leave([x, group.single(number, heads), *leaving])[0]
        return x


def _tensors(step: Layer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """In the order of `compiled_piece.py`."""
    matrices = []
    for one in step.matrices():
        kernel = one.one_row()
        assert kernel is not None
        matrices.append([*kernel[1], *([] if one.bias is None else [one.bias])])
    norm = {place: [] if found is None else [found.weight] for place, found in step.norms().items()}
    entering = [*norm["before_attention"], *norm["heads"], *matrices[0]]
    return entering, [*matrices[1], *norm["after_attention"], *norm["before_mlp"], *matrices[2], *matrices[3], *norm["after_mlp"]]


def take_from(runner: object, scratch: Path, fds: Sequence[int], lengths: Sequence[int]) -> api.CompiledTaken:
    """As `take`, of the libraries behind these descriptors."""
    if len(fds) != len(PARTS) or len(lengths) != len(PARTS) or not all(0 < length <= _LARGEST for length in lengths):
        raise BadInput(f"take_compiled: {len(PARTS)} libraries of at most {_LARGEST} bytes are taken")
    if not isinstance(runner, LeanRunner):
        return api.CompiledTaken(taken=False, said="these layers don't run lean")
    folder = Path(tempfile.mkdtemp(prefix="compiled-", dir=scratch))
    try:
        for part, fd, length in zip(PARTS, fds, lengths, strict=True):
            (folder / f"{part}.so").write_bytes(os.pread(fd, length, 0))
        return api.CompiledTaken(taken=True, said=take(runner, folder))
    except Unlike as unlike:
        return api.CompiledTaken(taken=False, said=str(unlike))
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays


def take(runner: LeanRunner, folder: Path) -> str:
    """Runs single rows by the libraries in `folder` from now on, if that gives what the layers give; says so, or `Unlike` why not."""
    container: Any = torch._C._aoti.AOTIModelContainerRunnerCpu
    try:
        parts = {part: container(str(folder / f"{part}.so"), 1).run for part in PARTS}
    except RuntimeError as error:
        raise Unlike(f"the compiled layers can't be loaded: {str(error)[:200]}") from error
    made = Compiled(parts, runner.steps)
    worst = _compare(runner, made)
    runner.compiled = made
    return f"single rows compiled, within {worst:.1g} of the layers"


def _compare(runner: LeanRunner, made: OneRow) -> float:
    """How far the worst of some rows, one after the other, is apart; `Unlike` where that is too far."""
    apart, slots = [], (-1, -2)
    with torch.inference_mode():
        rows = torch.randn(_ROWS, runner.hidden, generator=torch.Generator().manual_seed(5)).to(runner.dtype)
        try:
            for at in range(_ROWS):
                given = None if runner.embeds else rows[at : at + 1]
                found = []
                for slot, compiled in zip(slots, (None, made), strict=True):
                    runner.compiled = compiled
                    words = [(11 * at + 3) % runner.vocabulary] if runner.embeds else None
                    found.append(runner.run([Row(slot, at, 1, words, 1)], given).float())
                base = torch.zeros(()) if given is None or runner.tops else given.float()
                apart.append(float((found[0] - found[1]).norm() / (found[0] - base).norm().clamp_min(1e-12)))
        except RuntimeError as error:
            raise Unlike(f"the compiled layers don't run: {str(error)[:200]}") from error
        finally:
            runner.compiled = None
            for slot in slots:
                runner.release(slot)
    # One by one: what isn't a number is greater than nothing, `max` would pass it over.
    if not (all(much <= _MOST for much in apart) and median(apart) <= _APART):
        raise Unlike(f"the compiled layers give other numbers ({median(apart):.2g} apart, at worst {max(apart):.2g})")
    return max(apart)
