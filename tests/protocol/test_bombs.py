"""Names, headers, msgpack and zstd made to cost more than they weigh: each refused within 100 ms and 64 MiB, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from protocol import limits
from tests.protocol.bombs import BOMBS
from tests.support.processes import TOP, environment

SECONDS, MEMORY, SLACK = 0.2, 64 * limits.MIB, 3


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_costs_anything(name: str) -> None:
    command = [sys.executable, "-m", "tests.protocol.bombs", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=TOP, env=environment(), check=True)
    assert done.stdout, "it was taken for good"
    found = json.loads(done.stdout)
    print(f"{name}: {1000 * found['seconds']:.1f} ms, {found['bytes'] / limits.MIB:.1f} MiB: {found['said']}")
    assert found["seconds"] < SLACK * SECONDS
    assert found["bytes"] < MEMORY
