"""Runs the child under strace: to kill it at its N-th call, to let that call fail, or to write down the calls in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHANGES = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,utimensat"
"""Every call by which the child changes the disk; its answers go by writev."""
WITHIN = 60.0
_CALL = re.compile(r"(?:\d+ +)?(\w+)\(")


@dataclass(frozen=True)
class Ended:
    """`told` is what the child said, line by line; `killed` whether it was; `calls` the log's lines."""

    told: list[str]
    killed: bool
    calls: list[str]
    errors: str

    @property
    def acks(self) -> list[int]:
        return [int(line[4:]) for line in self.told if line.startswith("ack ")]

    @property
    def refused(self) -> dict[int, str]:
        return {int(line.split()[1]): line.split()[2] for line in self.told if line.startswith("no ") and "open" not in line}


@dataclass(frozen=True)
class Place:
    """The `count`-th time that the child makes this call; strace counts each call by itself."""

    call: str
    count: int


def run(folder: Path, steps: str, *without: str, at: Place | None = None, fault: str = "", trace: str = CHANGES) -> Ended:
    """`fault` as strace words it: `signal=KILL`, `error=EIO`; it comes in place of the call `at`."""
    log = folder.with_suffix(".strace")
    # With --seccomp-bpf strace stops at the traced calls only and is quick, but doesn't inject signals.
    how = [] if "signal" in fault else ["--seccomp-bpf"]
    how += ["-e", f"inject={at.call}:{fault}:when={at.count}"] if at else []
    command = ["strace", "-f", "-y", "-s", "64", "-o", str(log), "-e", f"trace={trace}", *how]
    command += [sys.executable, "-m", "tests.crash.child", str(folder), steps, *without]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WITHIN, check=False)
    calls = [line for line in log.read_text(errors="replace").splitlines() if _CALL.match(line)]
    return Ended(done.stdout.splitlines(), done.returncode != 0, calls, done.stderr)


def places(calls: Sequence[str]) -> list[Place]:
    """Every place of a log at which something can be injected, in order."""
    counts: Counter[str] = Counter()
    found = []
    for line in calls:
        match = _CALL.match(line)
        assert match
        counts[match[1]] += 1
        found.append(Place(match[1], counts[match[1]]))
    return found
