from __future__ import annotations

import json
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from bootstrap import demo_model as demo
from protocol.errors import NotFound, Unavailable

SMALL_FILES = {
    "chat_template.jinja": "872be49dbb638044",
    "tokenizer.json": "bf346d64f6f0fbce",
    "tokenizer_config.json": "9a35ec54a7aefb72",
}
WEIGHTS = "7ef915c9bf9d94d8"


def test_the_folder_is_whole_and_the_same_everywhere() -> None:
    folder = demo.demo_model()
    for name, begins in SMALL_FILES.items():
        assert sha256((folder / name).read_bytes()).hexdigest().startswith(begins), name
    assert sha256((folder / "model.safetensors").read_bytes()).hexdigest().startswith(WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"]) == (30, "bfloat16")
    assert "quantization_config" not in config


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def convert(_source: Path, work: Path) -> None:
        made.append(work)
        (work / "config.json").write_text("{}")

    monkeypatch.setattr(demo, "_convert", convert)
    first, second = demo.demo_model(tmp_path), demo.demo_model(tmp_path)
    assert first == second == tmp_path / "demo-model"
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo-model"]


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_args: object, **_named: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "ImportError: no gguf")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(Unavailable, match="ImportError: no gguf"):
        demo.demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_here")
    with pytest.raises(NotFound, match="isn't installed"):
        demo.demo_model(tmp_path)


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_CACHE", str(tmp_path))
    assert demo.cache_folder() == tmp_path
    monkeypatch.delenv("MF_CACHE")
    assert demo.cache_folder() == Path.home() / ".cache" / "modelfloat"
