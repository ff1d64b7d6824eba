"""Where the kernels come from: made once, taken by all, refused where they aren't whole."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.native import kernels


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kernels.FOLDER, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def found() -> Any:
    return kernels.found.__wrapped__()


def put_image(folder: Path, image: bytes, entry: int = 0) -> Path:
    folder.mkdir()
    path = kernels._path()
    kernels.written(path, image, entry)
    return path


ANSWER = bytes.fromhex("b82a000000c3")
"""x86-64: 42 is returned."""


def test_what_is_there_is_taken(folder: Path) -> None:
    put_image(folder, b"\xcc" * 16 + ANSWER, 16)
    assert found()(0, 0) == 42


@pytest.mark.parametrize("spoil", [lambda c: c[:-1], lambda c: c[:57] + b"\0" + c[58:], lambda c: b"x" + c[1:], lambda c: b""])
def test_what_is_damaged_goes(folder: Path, spoil: Any) -> None:
    path = put_image(folder, ANSWER)
    path.write_bytes(spoil(path.read_bytes()))
    assert "was damaged" in found()
    assert not path.exists()


def test_an_entry_beyond_the_image_is_refused(folder: Path) -> None:
    put_image(folder, ANSWER, 6)
    assert "was damaged" in found()


def test_off_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("off", None):
        if value is None:
            monkeypatch.delenv(kernels.FOLDER)
        else:
            monkeypatch.setenv(kernels.FOLDER, value)
        assert found() == "they are switched off"


def test_without_the_compiler_it_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise kernels.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kernels.importlib.metadata, "version", missing)
    assert found() == "numba isn't installed (pip install .[kernels])"


def test_another_machine_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.platform, "machine", lambda: "riscv64")
    assert found() == "they are made for Linux on x86-64 alone"


def test_a_compiler_that_fails_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_given: Any, **_named: Any) -> Any:
        return subprocess.CompletedProcess([], 1, b"", b"Traceback\nValueError: no such processor\n")

    monkeypatch.setattr(kernels.subprocess, "run", failing)
    assert found() == "they can't be compiled: ValueError: no such processor"


def test_a_compiler_that_hangs_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(*given: Any, timeout: float, **_named: Any) -> Any:
        raise subprocess.TimeoutExpired(given, timeout)

    monkeypatch.setattr(kernels.subprocess, "run", hanging)
    assert "weren't compiled within" in found()


def test_a_folder_that_cant_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(kernels.FOLDER, str(tmp_path / "file" / "kernels"))
    assert "Not a directory" in found()


def test_the_name_is_of_this_processor_and_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {kernels._path()}
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_processor", lambda: "another")
        names.add(kernels._path())
    with monkeypatch.context() as patch:
        patch.setattr(kernels.importlib.metadata, "version", lambda name: "0")
        names.add(kernels._path())
    assert len(names) == 3
