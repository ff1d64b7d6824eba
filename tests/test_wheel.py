"""The wheel: built from this tree, installed into an empty environment, run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from node.version import VERSION

TOP = Path(__file__).resolve().parents[1]
ROOMS = ("node", "protocol", "erasure", "runtime", "bootstrap")


def _run(*command: str, cwd: Path, **env: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MF_", "PYTHON"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env={**kept, **env})
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_wheel_installs_into_an_empty_environment_and_runs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for room in ROOMS:
        shutil.copytree(TOP / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), ".", cwd=source)
    wheel = next(tmp_path.glob("modelfloat-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "node/http/web/index.html" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]

    home = tmp_path / "empty"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    _run(*pip, "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    # The dependencies are lent from this environment: nothing is downloaded twice.
    lent = {"PYTHONPATH": sysconfig.get_paths()["purelib"], "COLUMNS": "100"}
    command = str(home / "bin" / "mf-node")
    assert VERSION in _run(command, "--version", cwd=tmp_path, **lent)
    assert "publish" in _run(command, "--help", cwd=tmp_path, **lent)
    origin = _run(str(python), "-c", "import node.version; print(node.version.__file__)", cwd=tmp_path, **lent)
    assert origin.startswith(str(home))
