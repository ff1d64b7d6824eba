"""The compiled form of layers: what is compiled gives what the layers give, in every kind and precision; what doesn't isn't taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from protocol.errors import BadInput
from runtime import compiled, compiled_piece, compiling
from runtime.compiled import Compiled, _compare, shape_of, take_from
from runtime.compiled_shape import PARTS, LayerShape, name_of
from runtime.lean import LeanRunner
from runtime.lean_shape import Unlike
from tests.runtime.lean_kinds import KINDS, lean_of, reference

SHAPE = LayerShape(
    hidden=64, heads=4, kv_heads=2, head_dim=16, inner=128, rotated=16, eps=1e-5, act="silu", stored=("int8",) * 4, biased=(False,) * 4
)


def case(name: str) -> Any:
    """All kinds by night, those that differ most always."""
    return pytest.param(name, "int8", marks=() if name in ("llama", "qwen3", "gemma2") else pytest.mark.nightly)


def as_written(shape: LayerShape) -> dict[str, Callable[[list[torch.Tensor]], Any]]:
    """The parts as torch runs them without its compiler."""

    def run(part: str) -> Callable[[list[torch.Tensor]], Any]:
        made = compiled_piece.piece(shape, part)

        def call(given: list[torch.Tensor]) -> list[torch.Tensor]:
            made_up = compiled_piece.made_up(shape, part)
            assert [(one.shape, one.dtype) for one in given] == [(one.shape, one.dtype) for one in made_up]
            return [made(*given)]

        return call

    return {part: run(part) for part in PARTS}


def runners(folder: Path, name: str, precision: str, stages: int = 2) -> list[LeanRunner]:
    config, model = reference(name)
    return lean_of(folder, config, model.bfloat16(), stages, precision)


@pytest.mark.parametrize(("name", "precision"), [*(case(name) for name in KINDS), ("llama", "bf16"), ("qwen2", "int4")])
def test_the_parts_give_what_the_layers_give(name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.linear._packs", lambda: False)
    monkeypatch.setattr("runtime.linear.multiplies_fp16", lambda: False)
    for runner in runners(tmp_path, name, precision, 2 if name == "llama" else 1):
        shape = shape_of(runner)
        assert shape is not None
        shape.check()
        assert _compare(runner, Compiled(as_written(shape), runner.steps)) < 0.03
        assert runner.compiled is None


@pytest.mark.parametrize("part", PARTS)
def test_no_two_arguments_are_one_tensor(part: str) -> None:
    """The compiler would make one argument of them, and leave the other unread."""
    shape = msgspec.structs.replace(SHAPE, head_norm=True, sandwich=True, stored=("plain",) * 4, biased=(True,) * 4)
    given = compiled_piece.made_up(shape, part)
    assert len({one.data_ptr() for one in given}) == len(given)


@pytest.mark.parametrize("wrong", range(12))
def test_one_row_that_is_no_number_is_enough(wrong: int, tmp_path: Path) -> None:
    runner, rows = runners(tmp_path, "llama", "int8", 1)[0], iter(range(12))
    shape = shape_of(runner)
    assert shape is not None
    made = Compiled(as_written(shape), runner.steps)
    with pytest.raises(Unlike, match="other numbers"):
        _compare(runner, lambda *given: made(*given) * (float("nan") if next(rows) == wrong else 1))


def test_wrong_numbers_are_not_taken(tmp_path: Path) -> None:
    runner = runners(tmp_path, "llama", "int8", 1)[0]
    shape = shape_of(runner)
    assert shape is not None
    parts = as_written(msgspec.structs.replace(shape, eps=0.5))
    with pytest.raises(Unlike, match="other numbers"):
        _compare(runner, Compiled(parts, runner.steps))
    leaves = parts["leave"]
    parts = {**as_written(shape), "leave": lambda given: [leaves(given)[0] * float("nan")]}
    with pytest.raises(Unlike, match="nan apart"):
        _compare(runner, Compiled(parts, runner.steps))
    assert runner.compiled is None
    told = compiled.compilable(runner)
    assert told is not None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=type(told)) == told


def test_what_cannot_be_compiled_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shape_of(object()) is None
    assert compiled.compilable(None) is None
    config, model = reference("llama")
    assert shape_of(lean_of(tmp_path, config, model, 1)[0]) is None, "the reference precision"
    runner = runners(tmp_path, "llama", "bf16", 1)[0]
    monkeypatch.setattr(type(runner.steps[0].matrices()[0]), "one_row", lambda _self: None)
    assert shape_of(runner) is None, "an order of bytes that the compiler doesn't know"


def test_no_library_is_no_reason_to_fail(tmp_path: Path) -> None:
    runner = runners(tmp_path, "llama", "int8", 1)[0]
    noise = tmp_path / "noise"
    noise.write_bytes(b"\x7fELF" + os.urandom(500))
    fds = [os.open(noise, os.O_RDONLY) for _ in PARTS]
    try:
        told = take_from(runner, tmp_path, fds, [504, 504])
        assert not told.taken
        assert "can't be loaded" in told.said
        assert not take_from(object(), tmp_path, fds, [504, 504]).taken
        for lengths in ([504], [504, 0], [504, 1 << 40]):
            with pytest.raises(BadInput, match="libraries"):
                take_from(runner, tmp_path, fds, lengths)
    finally:
        for fd in fds:
            os.close(fd)
    assert not list(tmp_path.glob("compiled-*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 0},
        {"inner": 1 << 30},
        {"rotated": 3},
        {"rotated": 32},
        {"heads": 3},
        {"act": "relu"},
        {"eps": 2.0},
        {"stored": ("fp8",) * 4},
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    SHAPE.check()
    with pytest.raises(BadInput):
        msgspec.structs.replace(SHAPE, **changes).check()


def test_a_name_changes_with_all_that_matters() -> None:
    names = {
        name_of(SHAPE, "2.13", "AVX2"),
        name_of(SHAPE, "2.14", "AVX2"),
        name_of(SHAPE, "2.13", "AVX512"),
        name_of(msgspec.structs.replace(SHAPE, inner=256), "2.13", "AVX2"),
    }
    assert len(names) == 4
    assert name_of(SHAPE, "2.13", "AVX2") in names


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "precision"), [("llama", "int8"), ("qwen2", "int4"), ("qwen3", "bf16"), ("gemma2", "int8")])
def test_compiled_for_real(name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.linear._packs", lambda: False)
    monkeypatch.setattr("runtime.linear.multiplies_fp16", lambda: False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    for runner in runners(tmp_path, name, precision):
        shape = shape_of(runner)
        assert shape is not None
        for part in PARTS:
            if not (tmp_path / f"{part}.so").exists():
                compiling.compile_part(shape, part, tmp_path)
        assert "compiled" in compiled.take(runner, tmp_path)
        assert runner.compiled is not None
