"""Room that FBGEMM makes and never uses goes back, and what it does use stays as it is."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime import fbgemm
from runtime.heap import trim
from runtime.unused_tail import Range, beyond, made_tight
from tests.runtime.test_heap import MIB, resident

linux = pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")


def pages(numbers: set[int]) -> list[Range]:
    """Ranges of the numbers, in order and without overlaps."""
    found: list[Range] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_beyond_is_what_was_added(after: set[int], before: set[int]) -> None:
    found = list(beyond(pages(after), pages(before)))
    assert {number for begin, end in found for number in range(begin, end)} == after - before
    assert all(begin < end for begin, end in found)


@linux
@pytest.mark.skipif(not fbgemm.available(), reason="this processor has no FBGEMM")
def test_a_matrix_takes_what_its_numbers_take_and_multiplies_as_before() -> None:
    rng = torch.Generator().manual_seed(4)
    weight, x = torch.randn(16_384, 576, generator=rng).half().float(), torch.randn(6, 576, generator=rng)
    fbgemm.pack_fp16(weight[:64], None)  # the thread, and what it loads
    trim()
    before = resident()
    packed = fbgemm.pack_fp16(weight, None)
    trim()
    taken = resident() - before
    assert taken < 1.15 * 2 * weight.numel(), f"{taken / MIB:.0f} MiB; where it lies on 1,024 it is 32"
    for _ in range(2):
        assert torch.allclose(fbgemm.times_fp16(x, packed), x @ weight.t(), atol=1e-3)


@linux
def test_what_isnt_zeros_stays() -> None:
    def piece(last: int) -> mmap.mmap:
        made = mmap.mmap(-1, 4 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        made.write(bytes(4 * MIB))
        made[0], made[-1] = 7, last
        return made

    before = resident()
    full = made_tight(lambda: piece(9), 1 * MIB)
    assert resident() - before > 3.5 * MIB
    tight = made_tight(lambda: piece(0), 1 * MIB)
    assert resident() - before < 5.5 * MIB
    assert (full[0], full[-1], tight[0], tight[-1]) == (7, 9, 7, 0)
    assert tight[2 * MIB :] == bytes(2 * MIB)


@linux
def test_what_fails_fails_and_what_has_no_piece_of_its_own_stays() -> None:
    with pytest.raises(ValueError, match="no"):
        made_tight(lambda: int("no"), 1)
    assert made_tight(lambda: [1], 1 * MIB) == [1]
