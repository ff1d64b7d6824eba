"""What a foreign allocation never uses goes back to the system, found by being all zeros.

Problem: FBGEMM makes room for matrices in fp16 as if they were a multiple of 512 wide, clears all of it, and uses none of what is beyond
(PackedGemmMatrixFP16: blocks of 512 rows lie whole, the last one packed tight). A matrix 576 wide lies on 1,024: of SmolLM2-135M's 311 MB
another 140 lay so. Nobody tells where it lies either. Choice: it is made by a thread that does nothing else, whose malloc therefore has
nothing free to hand out, with malloc told to map what is large: then it is the one mapping that wasn't there before. Behind what it uses,
whole pages that are all zeros are given back; read again, they are zeros. Where anything is otherwise than expected nothing happens.

Rejected: looking for zeros in all of the heap (another thread may write between look and return), other widths for the product (its sums
would come in another order), to count it (a model would need more memory on the processors that have least).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from runtime.heap import large_apart

T = TypeVar("T")
Range = tuple[int, int]
"""Addresses, the end excluded."""
_MAPPED = 1 << 16
"""Bytes from which malloc maps a piece while something is made here."""
_HEADER = mmap.PAGESIZE
"""More than malloc and its alignment put before a piece."""


def made_tight(make: Callable[[], T], used: int) -> T:
    """What `make` gives, which holds `used` bytes in one piece, whatever else it made room for; on Linux alone that goes back."""
    if sys.platform != "linux":
        return make()
    large_apart(_MAPPED)
    try:
        made, new = _thread().submit(_watched, make).result()
    finally:
        large_apart()
    pieces = [piece for piece in new if piece[1] - piece[0] >= used]
    if len(pieces) == 1:
        _give_back(pieces[0], used)
    return made


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "packing")


def _watched(make: Callable[[], T]) -> tuple[T, list[Range]]:
    before = _anonymous()
    made = make()
    return made, list(beyond(_anonymous(), before))


def _anonymous() -> list[Range]:
    """This process's private memory that no file lies behind, in order."""
    found = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            words = line.split()
            if len(words) == 5 and words[1] == "rw-p":
                begin, _, end = words[0].partition("-")
                found.append((int(begin, 16), int(end, 16)))
    return found


def beyond(after: Iterable[Range], before: Iterable[Range]) -> Iterable[Range]:
    """The parts of `after` that aren't in `before`; both in order and without overlaps."""
    gone = list(before)
    as_it_was = set(gone)
    for begin, end in after:
        if (begin, end) in as_it_was:
            continue
        at = begin
        for first, last in gone:
            if last <= at or first >= end:
                continue
            if first > at:
                yield at, first
            at = last
        if at < end:
            yield at, end


def _give_back(piece: Range, used: int) -> None:
    begin = -(-(piece[0] + _HEADER + used) // mmap.PAGESIZE) * mmap.PAGESIZE
    length = piece[1] - begin
    if length < _MAPPED:
        return
    tail = np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(begin))
    if not tail.any():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
