"""What `mf-node` loads before it answers."""

from __future__ import annotations

import subprocess
import sys
import time

from node.version import VERSION
from tests.support.processes import TOP, environment, mf_node

HELP_WITHIN = 0.3
SLACK = 3


def test_help_answers_at_once() -> None:
    best = 10.0
    for _ in range(3):
        began = time.monotonic()
        assert mf_node("--help").returncode == 0
        best = min(best, time.monotonic() - began)
    assert best <= HELP_WITHIN * SLACK


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from node.cli.app import run_command_line; run_command_line(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd=TOP, env=environment())
    heavy = [
        name for name in ("torch", "transformers", "libp2p", "trio", "aiohttp", "msgspec", "numpy", "rich") if f"'{name}'" in done.stderr
    ]
    assert heavy == []


def test_version() -> None:
    assert VERSION in mf_node("--version").stdout


def test_a_fault_shows_no_traceback() -> None:
    done = mf_node("--data-dir", "/dev/null/x", "status")
    assert done.returncode == 8
    assert "Traceback" not in done.stderr
