"""Which engine a stage is loaded into: torch, or llama.cpp where that is the faster one. Pure, and without torch: planners ask too.

Measured on SmolLM2-135M with two threads (`python -m bench.llama`), tokens a second of 1 / 2 / 4 / 8 sequences together: bf16
90 / 94 / 134 / 190 through llama.cpp, 44 / 75 / 150 / 272 through torch. So `auto` takes llama.cpp for the first few sequences of a
model and torch for what comes beside them; a crowd that stays is soon torch's altogether. `q8_0` and `q4_1` are llama.cpp's own
precisions; where it can't run them torch runs the precision that holds as many bits, made by nearly the same rule, and says so. What
a stage became is known once it is loaded: llama.cpp is compared with torch on the stage itself, and torch stays where it differs
(`runtime/llama/engine.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.llama.library import missing

ENGINES = ("auto", "torch", "llama")
STANDS_IN = {"q8_0": "int8", "q4_1": "int4"}
"""Precisions of llama.cpp alone, and what torch runs in their place."""
RUN_BY_LLAMA = ("bf16", *STANDS_IN)
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model types, and llama.cpp's names for what runs them."""
FEW = 4
"""Sequences of one stage for which llama.cpp is the faster."""


@dataclass(frozen=True)
class Choice:
    """`engine` torch|llama, and why."""

    engine: str
    why: str


@dataclass(frozen=True)
class Asked:
    """What is known before loading. `crashed`: what is told of an earlier crash of llama.cpp with this model; `others`: sequences that
    run on these layers already; `roomy`: memory for twice the keys and values, since llama.cpp takes them in lengths that double;
    `device`: what the stage's weights lie on."""

    engine: str
    precision: str
    model_type: str
    crashed: str | None = None
    others: int = 0
    roomy: bool = True
    device: str = "cpu"


def choose(asked: Asked, absent: str | None) -> Choice:
    """`absent`: why llama.cpp can't be used on this machine, None where it can be tried (`missing`)."""
    if asked.engine == "torch":
        return Choice("torch", "--engine torch")
    reasons = (
        (asked.device != "cpu", f"llama.cpp runs on the CPU here, the worker on {asked.device}"),
        (asked.precision not in RUN_BY_LLAMA, f"llama.cpp has no {asked.precision[:16]}"),
        (asked.model_type not in ARCHITECTURES, f"llama.cpp isn't given models of type {asked.model_type[:32]!r} here"),
        (absent is not None, f"llama.cpp: {absent}"),
        (asked.crashed is not None, asked.crashed or ""),
    )
    for holds, why in reasons:
        if holds:
            return Choice("torch", why)
    if asked.engine == "llama":
        return Choice("llama", "--engine llama")
    if asked.precision in STANDS_IN:
        return Choice("llama", f"{asked.precision} is llama.cpp's own")
    if asked.others >= FEW:
        return Choice("torch", f"{asked.others} sequences run beside it: torch is faster for more than {FEW}")
    if not asked.roomy:
        return Choice("torch", "memory is short for llama.cpp, which takes room in lengths that double")
    return Choice("llama", "llama.cpp is faster for few sequences")


def choose_here(asked: Asked) -> Choice:
    """With what is installed on this machine."""
    return choose(asked, missing())


def torch_precision(precision: str) -> str:
    """What torch runs where `precision` is asked."""
    return STANDS_IN.get(precision, precision)
