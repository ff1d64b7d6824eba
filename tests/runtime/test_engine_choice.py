"""Which engine a stage is loaded into: every reason by itself, and that one is always told."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runtime.engine_choice import ENGINES, FEW, STANDS_IN, Asked, choose, torch_precision
from runtime.memory import TRAVELS, WIDTHS


@pytest.mark.parametrize(
    ("asked", "absent", "engine", "why"),
    [
        (Asked("torch", "bf16", "llama"), None, "torch", "--engine torch"),
        (Asked("auto", "bf16", "llama"), None, "llama", "faster for few"),
        (Asked("auto", "bf16", "llama", others=FEW), None, "torch", "4 sequences run beside it"),
        (Asked("auto", "bf16", "llama", roomy=False), None, "torch", "memory is short"),
        (Asked("auto", "q8_0", "llama", others=FEW, roomy=False), None, "llama", "q8_0 is llama.cpp's own"),
        (Asked("llama", "bf16", "llama", others=99), None, "llama", "--engine llama"),
        (Asked("llama", "int8", "llama"), None, "torch", "has no int8"),
        (Asked("llama", "fp32", "llama"), None, "torch", "has no fp32"),
        (Asked("llama", "bf16", "gpt_neox"), None, "torch", "type 'gpt_neox'"),
        (Asked("llama", "q4_1", "qwen3"), "it isn't installed", "torch", "llama.cpp: it isn't installed"),
        (Asked("llama", "q4_1", "qwen3", crashed="the worker died"), None, "torch", "the worker died"),
    ],
)
def test_each_reason(asked: Asked, absent: str | None, engine: str, why: str) -> None:
    choice = choose(asked, absent)
    assert choice.engine == engine
    assert why in choice.why


@given(
    some.builds(
        Asked,
        some.sampled_from(ENGINES),
        some.sampled_from(list(WIDTHS)),
        some.text(max_size=80),
        some.none() | some.text(),
        some.integers(0, 99),
        some.booleans(),
    ),
    some.none() | some.text(),
)
def test_llama_only_runs_what_it_has(asked: Asked, absent: str | None) -> None:
    choice = choose(asked, absent)
    assert choice.engine in ("torch", "llama")
    if choice.engine == "llama":
        assert asked.engine != "torch"
        assert asked.precision in ("bf16", "q8_0", "q4_1")
        assert (asked.crashed, absent) == (None, None)


def test_what_stands_in_takes_no_more_room_and_travels_alike() -> None:
    for precision, other in STANDS_IN.items():
        assert torch_precision(precision) == other
        assert WIDTHS[other].matrix <= WIDTHS[precision].matrix
        assert WIDTHS[other].head <= WIDTHS[precision].head
        assert TRAVELS[other] == TRAVELS[precision] == "bf16"
    assert torch_precision("bf16") == "bf16"


def test_planners_ask_without_torch() -> None:
    check = "import sys, runtime.engine_choice, node.engines; assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
