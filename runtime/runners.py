"""Which way a loaded stage runs: by llama.cpp where that is chosen and gives what torch gives, else lean where that gives what
transformers gives, else by transformers' own forward."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from protocol.errors import MfError
from runtime import lean_check
from runtime.engine_choice import Asked, choose_here, torch_precision
from runtime.lean import LeanRunner, making_layers
from runtime.lean_shape import Decoder, Unlike, decoder_of
from runtime.llama.engine import build_llama
from runtime.model_runner import ModelRunner
from runtime.native import runner as native
from runtime.quantised import quantise
from runtime.self_test import self_testing
from runtime.sliced import Sliced, whole
from runtime.stage import Stage
from runtime.stage_runner import StageRunner
from runtime.widened import Widened

log = logging.getLogger(__name__)

Lean = LeanRunner | native.NativeRunner
REFERENCE = "fp32"
"""The precision that always runs by transformers: it is what others are measured against, and a row's result is the same in any pass."""


@dataclass(frozen=True)
class Made:
    """`kept`: what still lies on the groups' memory; `engine` and `why` it is that one; `said` of what was tried; `lean`: it runs so."""

    runner: ModelRunner
    kept: nn.Module
    engine: str
    why: str
    said: str
    lean: bool = False


def make_runner(stage: Stage, tensors: Mapping[str, torch.Tensor], engine: str, precision: str, scratch: Path, weight_bytes: int) -> Made:
    """As `making_runner`, at once."""
    return whole(making_runner(stage, tensors, engine, precision, scratch, weight_bytes))


def making_runner(
    stage: Stage, tensors: Mapping[str, torch.Tensor], engine: str, precision: str, scratch: Path, weight_bytes: int, checked: str = ""
) -> Sliced[Made]:
    """For a stage that passed its self-test, by the engine asked for, or torch and why. `scratch`: a folder for a file of weights.

    `checked` as for `making_lean`.
    """
    choice = choose_here(Asked(engine, precision, str(getattr(stage.config, "model_type", "")), device=stage.device.type))
    why = choice.why
    if choice.engine == "llama":
        try:
            llama, said = build_llama(stage, tensors, precision, scratch, torch.get_num_threads())
            return Made(llama, nn.ModuleList(), "llama", why, said)
        except MfError as error:
            why = error.message
            log.warning("torch runs layers %d..%d in llama.cpp's place: %s", stage.first, stage.end, why)
    instead = torch_precision(precision)
    lean, said = yield from making_lean(stage, instead, checked)
    runner: ModelRunner = StageRunner(stage, weight_bytes) if lean is None else lean
    if instead != precision:
        why, runner = f"{instead} in place of {precision}: {why}", Widened(runner)
    return Made(runner, stage.model if lean is None else lean.kept, "torch", why, said, lean is not None)


def lean_runner(stage: Stage, precision: str) -> tuple[Lean | None, str]:
    """As `making_lean`, at once."""
    return whole(making_lean(stage, precision))


def making_lean(stage: Stage, precision: str, checked: str = "") -> Sliced[tuple[Lean | None, str]]:
    """For a stage that passed its self-test; None where it is to run itself, and what is to be said of either.

    A stage at int8 or int4 has its matrices replaced. `BadInput` where the precision can't be had for its class. `checked`: what was said
    of the same stage, in the same precision and on this machine, when it was compared before: it isn't again.
    """
    if precision == REFERENCE:
        return None, "run by transformers, the reference"
    decoder: Decoder | None = None
    why = ""
    try:
        decoder = decoder_of(stage)
    except Unlike as unlike:
        why = str(unlike)
    if precision in ("int8", "int4"):
        quantise(stage, precision)
        yield
        yield from self_testing(stage)
    for make in (native.making, _making_torch):
        if decoder is None:
            break
        try:
            runner: Lean = yield from make(stage, decoder, precision)
            yield
            return runner, checked or f"run lean{_BY[make]}, {yield from lean_check.checking(stage, runner)}"
        except Unlike as unlike:
            why = str(unlike)
            log.info("layers %d..%d aren't run lean%s: %s", stage.first, stage.end, _BY[make], why)
    return None, f"run by transformers: {why}"


def _making_torch(stage: Stage, decoder: Decoder, precision: str) -> Sliced[LeanRunner]:
    steps = yield from making_layers(decoder, precision)
    return LeanRunner(stage, decoder, precision, steps)


_BY: dict[object, str] = {native.making: " by compiled kernels", _making_torch: ""}
