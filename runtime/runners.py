"""Which way a loaded stage runs: lean where that gives what transformers gives, else by transformers' own forward."""

from __future__ import annotations

from runtime import lean_check
from runtime.lean import LeanRunner
from runtime.lean_shape import Decoder, Unlike, decoder_of
from runtime.quantised import quantise
from runtime.self_test import self_test
from runtime.stage import Stage

REFERENCE = "fp32"
"""The precision that always runs by transformers: it is what others are measured against, and a row's result is the same in any pass."""


def lean_runner(stage: Stage, precision: str) -> tuple[LeanRunner | None, str]:
    """For a stage that passed its self-test; None where it is to run itself, and what is to be said of either.

    A stage at int8 or int4 has its matrices replaced. `BadInput` where the precision can't be had for its class.
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
        self_test(stage)
    if decoder is not None:
        try:
            runner = LeanRunner(stage, decoder, precision)
            return runner, f"run lean, {lean_check.check(stage, runner)}"
        except Unlike as unlike:
            why = str(unlike)
    return None, f"run by transformers: {why}"
