"""Where those programs live: environments of their own, made once and kept in the cache, so that their requirements never meet ours.

`python -m tests.clients.environments` makes those that every change needs; `nightly` after it the others too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.environments import command, environment
from bootstrap.demo_model import cache_folder

PYTHON = ("openai==3.57.0", "litellm==1.110.2", "llm==0.36")
NODE = ("openai@7.57.0",)
NIGHTLY_PYTHON = ("langchain-openai==1.7.4", "ollama==0.6.3")
NIGHTLY_NODE = ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92")
SCHEMATHESIS = ("schemathesis==4.32.5",)
_NPM_WITHIN = 300.0


def node_folder(*packages: str) -> Path:
    """A folder whose `node_modules` has these packages."""
    name = "+".join(package.replace("/", "-") for package in packages)
    folder = cache_folder() / "clients" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".npm-", dir=folder.parent))
        (work / "package.json").write_text('{"private": true, "type": "module"}')
        line = [command("npm", "npm"), "install", "--no-audit", "--no-fund", "--silent", *packages]
        subprocess.run(line, cwd=work, check=True, timeout=_NPM_WITHIN, stdin=subprocess.DEVNULL)
        os.replace(work, folder)
    return folder


def run_python(requirements: tuple[str, ...], script: Path, *arguments: str, timeout: float = 240.0) -> str:
    """What a script says in that environment; AssertionError with its end when it fails."""
    return run([str(environment(*requirements) / "python"), str(script), *arguments], timeout=timeout)


def run_node(packages: tuple[str, ...], script: Path, *arguments: str, timeout: float = 240.0) -> str:
    """As `run_python`. A script is copied to where its packages are found."""
    folder = node_folder(*packages)
    with tempfile.NamedTemporaryFile("w", suffix=".mjs", dir=folder, delete=False) as copy:
        copy.write(script.read_text())
    try:
        return run([command("node", "nodejs"), copy.name, *arguments], timeout=timeout)
    finally:
        Path(copy.name).unlink()


def run(line: list[str], timeout: float = 240.0, **env: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MF_", "OPENAI_", "PYTHONPATH"))}
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=timeout, env={**kept, "NO_PROXY": "*", **env}, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{Path(line[1]).name}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


if __name__ == "__main__":
    environment(*PYTHON)
    node_folder(*NODE)
    if "nightly" in sys.argv:
        environment(*NIGHTLY_PYTHON)
        environment(*SCHEMATHESIS)
        node_folder(*NIGHTLY_NODE)
    assert shutil.which("node"), "node isn't here: install it (Debian: apt-get install nodejs)"
