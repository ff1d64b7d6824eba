"""Starts the processes that are killed: `python -m tests.crash.nursery`. A fork has all imports done, so a kill costs milliseconds.

Reads `MODULE FOLDER ARGS…` by line, forks one that will run MODULE's `main(FOLDER, ARGS…)`, answers its pid; it begins after the line
`go`, when strace holds it. Then answers how it ended: 0, or the signal as a negative number. Its words go to FOLDER.told.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import tempfile
import traceback

from erasure.code import Code
from tests.crash import child, fetch_child, repair_child, staging_child, upgrade_child

CHILDREN = {module.__name__: module for module in (child, fetch_child, repair_child, staging_child, upgrade_child)}
_PR_SET_PTRACER = 0x59616D61


def begin(gate: int, module: str, folder: str, arguments: list[str]) -> None:
    """In the fork. Any process may trace it: the one that will isn't its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    told = os.open(f"{folder}.told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(told, 1)
    os.dup2(told, 2)
    if os.read(gate, 1) != b"!":
        os._exit(3)
    status = 1
    try:
        importlib.import_module(module).main(folder, *arguments)
        status = 0
    except BaseException:  # the fork's own end: it must not go on as the nursery
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    # What is looked for once and written about once in a process: not a thing of the work that is killed.
    tempfile.gettempdir()
    Code(2, 3).encode([bytes(16)] * 2)
    for line in sys.stdin:
        module, folder, *arguments = line.split()
        gate, opening = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(opening)
            begin(gate, module, folder, arguments)
        os.close(gate)
        print(pid, flush=True)
        os.write(opening, b"!" if sys.stdin.readline().strip() == "go" else b"?")
        os.close(opening)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
