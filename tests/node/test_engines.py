"""The owner's choice of engine, and a worker that died of it: remembered for that model, precision and version, and nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node import engines as module
from node.engines import FILE, Engines
from protocol.ids import ModelId, model_text

ONE, OTHER = ModelId(b"\x01" * 32), ModelId(b"\x02" * 32)


def located(model: ModelId = ONE) -> Any:
    return SimpleNamespace(model=model, manifest=SimpleNamespace(summary=SimpleNamespace(model_type="llama")))


def test_a_crash_is_remembered_beyond_this_life(tmp_path: Path) -> None:
    Engines("llama", tmp_path).crashed(model_text(ONE), "q8_0", "the worker ended (signal 11, SIGSEGV)")
    after = Engines("llama", tmp_path)
    choice = after.choose(located(), "q8_0")
    assert choice.engine == "torch"
    assert "signal 11, SIGSEGV" in choice.why
    assert FILE in choice.why
    assert after.choose(located(), "bf16").engine == "llama"
    assert after.choose(located(OTHER), "q8_0").engine == "llama"


def test_another_version_or_without_the_file_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Engines("llama", tmp_path).crashed(model_text(ONE), "bf16", "signal 6")
    with monkeypatch.context() as patched:
        patched.setattr(module, "VERSION", "later")
        assert Engines("llama", tmp_path).choose(located(), "bf16").engine == "llama"
    assert Engines("llama", tmp_path).choose(located(), "bf16").engine == "torch"
    (tmp_path / FILE).unlink()
    assert Engines("llama", tmp_path).choose(located(), "bf16").engine == "llama"


@pytest.mark.parametrize("content", ["", "[]", "{not json", json.dumps({"x": 1}), "\x00\xff"])
def test_a_broken_file_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    assert Engines("llama", tmp_path).choose(located(), "bf16").engine == "llama"


def test_few_are_kept_and_a_folder_that_cant_be_written_is_survived(tmp_path: Path) -> None:
    one = Engines("auto", tmp_path / "gone")
    for number in range(300):
        one.crashed(f"model{number}", "bf16", "signal 11")
    assert len(one._known()) == module.MOST
    assert "model299 bf16" in one._known()


def test_texts_are_torchs_and_nothing_is_asked_for_by_default() -> None:
    assert Engines("llama").choose(located(), "bf16", task="embed").engine == "torch"
    assert Engines().choose(located(), "bf16").why == "--engine torch"
