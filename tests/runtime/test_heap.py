"""Memory that was freed is given back."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.heap import trim
from tests.support.processes import TOP

MIB = 1 << 20


def resident() -> int:
    return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_freed_pieces_between_kept_ones_and_cycles_go_back() -> None:
    gc.disable()
    try:
        pieces = [bytes(64 * 1024) for _ in range(2048)]  # small enough for malloc's heap
        ring: list[object] = [pieces[::2]]
        ring.append(ring)
        kept = pieces[1::2]
        del pieces, ring
        before = resident()
        trim()
        assert before - resident() > 32 * MIB
        assert len(kept) == 1024
    finally:
        gc.enable()


LARGE = """
from runtime.heap import large_apart
from tests.runtime.test_heap import MIB, resident
large_apart()
once = bytearray(31 * MIB)
del once  # malloc would keep as much from now on, had it its way
before = resident()
piece, above = bytearray(b"x") * (24 * MIB), bytes(64 * 1024)
assert resident() - before > 20 * MIB
del piece
assert resident() - before < 4 * MIB
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_large_pieces_go_back_when_they_are_freed() -> None:
    """In a process of its own: in this one malloc has gaps of any size."""
    subprocess.run([sys.executable, "-c", LARGE], check=True, cwd=TOP, timeout=60)
