"""What loading a model and a pass free goes back to the system, and what is held.

Checking and packing weights takes a few times what stays of them. Python frees it when its cycles are collected (a model is one), and
malloc keeps it for later: of SmolLM2-135M in 8 bits 400 MiB lay idle so. A crowd's logits, freed and made anew in every pass with smaller
pieces between, leave gaps in malloc's heap that the next don't fit into: a vocabulary of 100,000 took 80 MB where 54 are counted.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD`, `M_MMAP_THRESHOLD` of glibc's malloc.h. Set, they no longer follow what is freed, up to twice 32 MiB."""
_LARGE, _IDLE = 16 << 20, 64 << 20
"""Bytes. With 1 MiB, and free memory given back from 128 KiB on, a crowd's pass took an eighth longer: the system clears its pages."""


def large_apart(size: int = _LARGE) -> None:
    """From now on pieces of `size` bytes and more come from the system and go back to it, where the C library can (glibc)."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, size)
        set_option(_TRIM_THRESHOLD, _IDLE)


def trim() -> None:
    """Collects cycles, and gives free memory back where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)


def pss() -> int:
    """The process's proportional set size in bytes, 0 where the kernel doesn't tell."""
    try:
        with open(f"/proc/{os.getpid()}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
