"""Rows of activations in whole numbers of 16 bits, for matrices whose weights are whole numbers.

A row is its scale times numbers of up to 32,767 (fewer bits where a sum over its width wouldn't fit 32), one scale for the row: within a
65,000th of its greatest, where bf16 is within a 500th of each. Whole products are added up exactly, so that no order matters, and sixteen
are made at a time where fp32 makes eight. Rejected: 8 bits (llama.cpp's; a row with one large number loses the small ones).

A row in memory: its scale, the sum of each group, both fp32, then its numbers.
"""

from __future__ import annotations

from runtime.native.compiled import kernel
from runtime.native.machine import (
    add,
    greater,
    greatest,
    load,
    magnitude,
    mul,
    nearest,
    put,
    spread,
    store_shorts,
    sub,
    total,
)

GROUP = 32
_MOST, _SUM = 32_767.0, 135_000_000.0
"""Of eight lanes each adds up an eighth of a row, times at most 127: 2^31 * 8 / 127."""
_LEAST = 1e-30
_HEAD = 32
"""Bytes of the scale, so that what follows lies well."""


@kernel
def shortened_bytes(width):
    """Of a row."""
    return _HEAD + (4 * (-(-width // GROUP)) + 31) // 32 * 32 + 2 * width


@kernel
def numbers_at(row, width):
    return row + _HEAD + (4 * (-(-width // GROUP)) + 31) // 32 * 32


@kernel
def sums_at(row):
    return row + _HEAD


@kernel
def shorten(x, width, row):
    """`x` [width] in fp32 into `row`. What is no number, or none that is finite, makes the scale none."""
    most, wrong = spread(0.0), spread(0.0)
    for at in range(0, width, 8):
        v = load(x, at)
        most = greater(most, magnitude(v))
        wrong = add(wrong, sub(v, v))
    size = max(greatest(most), _LEAST)
    steps = min(_MOST, _SUM / width)
    put(row, 0, size / steps + total(wrong))
    by, out, sums = spread(steps / size), numbers_at(row, width), sums_at(row)
    for group in range(-(-width // GROUP)):
        together = spread(0.0)
        for at in range(group * GROUP, min(width, (group + 1) * GROUP), 8):
            v = nearest(mul(load(x, at), by))
            store_shorts(out, at, v)
            together = add(together, v)
        put(sums, group, total(together))
