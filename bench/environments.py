"""A virtual environment for each program that we are compared with: its requirements never meet ours.

Made once, in `MF_CACHE` (else `~/.cache/modelfloat`) under `bench/`, versions pinned; a folder without the mark at the end is made again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bootstrap.demo_model import cache_folder

MARK = "installed"
_WITHIN = 900.0


class Missing(Exception):
    """What a comparison needs isn't here and can't be had: it is left out, saying so."""


def command(name: str, package: str) -> str:
    """Path of a program of the system, or `Missing` naming the Debian package."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        raise Missing(f"{name} isn't here: install it (Debian: apt-get install {package})")
    return found


def environment_folder(*requirements: str) -> Path:
    """Where it is, or would be."""
    return cache_folder() / "bench" / "+".join(requirements)


def environment(*requirements: str) -> Path:
    """`bin/` of an environment with these pinned requirements, or `Missing` with pip's own last word."""
    folder = environment_folder(*requirements)
    mark = folder / MARK
    if not mark.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], requirements)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *requirements], requirements)
        mark.touch()
    return folder / "bin"


def _run(line: list[str], requirements: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_WITHIN)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{' '.join(requirements)} can't be installed: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{' '.join(requirements)} can't be installed: {said[-1] if said else 'pip says nothing'}")
