"""The list of docs/ARCHITECTURES.md is true: every decoder class of transformers, tried tiny and compared bit for bit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from runtime.architectures import WHOLE, whole_only
from tests.runtime.tiny_decoders import kinds
from tests.runtime.try_decoders import Outcome, attempt, class_name

LIST = Path(__file__).parents[2] / "docs" / "ARCHITECTURES.md"
ROW = re.compile(r"^\| ([\w-]+) \| (\w+) \| (stages|some cuts|whole|refused|untried) \| (.*?) ?\|$", re.MULTILINE)
SAMPLE = (
    "llama",
    "gpt2",
    "gemma2",
    "qwen3_moe",
    "deepseek_v3",
    "jamba",
    "falcon_h1",
    "lfm2",
    "bloom",
    "deepseek_v4",
    "inkling2_text",
    "rwkv",
)
"""Plain, fused query-key-value, sliding windows, fused experts, latent attention, three hybrids, no rotary table; one that can be
cut in places, one that can't, and one whose memory isn't a cache."""


def listed() -> dict[str, Outcome]:
    return {kind: Outcome(how, why) for kind, _class, how, why in ROW.findall(LIST.read_text())}


@pytest.fixture(autouse=True)
def _quiet_on_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


def test_every_decoder_of_this_version_is_listed() -> None:
    found = ROW.findall(LIST.read_text())
    assert [kind for kind, *_rest in found] == kinds()
    assert all(name == class_name(kind) for kind, name, *_rest in found)


def test_at_least_80_classes_run_in_stages() -> None:
    text = LIST.read_text()
    able = {name for _kind, name, how, _why in ROW.findall(text) if how == "stages"}
    assert len(able) >= 80
    assert f"{len(able)} classes run in stages" in text


def test_planners_know_what_isnt_cut() -> None:
    assert {kind: outcome.why for kind, outcome in listed().items() if outcome.how == "whole"} == WHOLE
    assert whole_only("gemma3n") == WHOLE["gemma3n_text"]
    assert whole_only("llama") is None


def test_what_isnt_cut_has_its_reason() -> None:
    assert all(outcome.why for outcome in listed().values() if outcome.how != "stages")


@pytest.mark.parametrize("kind", SAMPLE)
def test_sample_is_as_listed(kind: str) -> None:
    assert attempt(kind).how == listed()[kind].how


@pytest.mark.nightly
@pytest.mark.parametrize("kind", kinds())
def test_all_are_as_listed(kind: str) -> None:
    assert attempt(kind).how == listed()[kind].how
