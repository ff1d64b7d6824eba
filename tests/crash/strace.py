"""Runs a child under strace: to kill it at its N-th call, to let that call fail, or to write down the calls in order."""

from __future__ import annotations

import atexit
import os
import re
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHANGES = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,ftruncate,utimensat"
"""Every call by which a child changes the disk; its answers go by writev."""
WITHIN = 60.0
_CALL = re.compile(r"(?:\d+ +)?(\w+)\(")


@dataclass(frozen=True)
class Ended:
    """`told` is what the child said, line by line; `killed` whether it was; `calls` the log's lines."""

    told: list[str]
    killed: bool
    calls: list[str]

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


class Nursery:
    def __init__(self) -> None:
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.crash.nursery"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        atexit.register(self.close)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(5)

    def bear(self, words: Sequence[str]) -> int:
        self._say(" ".join(words))
        return int(self._hear())

    def go(self) -> int:
        """How it ended."""
        self._say("go")
        return int(self._hear())

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], WITHIN)[0], "the child hangs"
        return self._process.stdout.readline()


nursery = cache(Nursery)


def run(folder: Path, *words: str, at: Place | None = None, fault: str = "", trace: str = CHANGES, child: str = "child") -> Ended:
    """`fault` as strace words it: `signal=KILL`, `error=EIO`; it comes in place of the call `at`."""
    log = folder.with_name(folder.name + ".strace")
    pid = nursery().bear([f"tests.crash.{child}", str(folder), *words])
    how = ["-e", f"inject={at.call}:{fault}:when={at.count}"] if at else []
    command = ["strace", "-f", "-y", "-s", "64", "-o", str(log), "-e", f"trace={trace}", *how, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        assert "attached" in (said := strace.stderr.readline()), said
        status = nursery().go()
        strace.stderr.read()
        strace.wait(WITHIN)
    calls = [line for line in log.read_text(errors="replace").splitlines() if _CALL.match(line)]
    told = folder.with_name(folder.name + ".told").read_text().splitlines()
    assert status <= 0, told
    return Ended(told, status < 0, calls)


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
