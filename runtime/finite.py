"""Whether hidden states as they travel are numbers.

A token's row comes when the processor's caches hold a stage's weights: half a dozen calls of numpy take 0.1 ms then, most of it to fetch
their code. Of a short row the bytes that hold the exponents' upper bits are looked through first, which takes a tenth of that; only where
one of them might belong to no number (or to one of 1e38 and more) all is looked at.
"""

from __future__ import annotations

import numpy as np

_EXPONENT = {"bf16": ("<u2", 0x7F80), "fp16": ("<u2", 0x7C00), "fp32": ("<u4", 0x7F800000)}
_WIDTH = {"bf16": 2, "fp32": 4}
SHORT = 16_384
"""Bytes."""


def all_finite(raw: bytes | memoryview, dtype: str) -> bool:
    """Whether none of these numbers is infinite or NaN: both have all bits of the exponent set."""
    width = _WIDTH.get(dtype)
    if width is not None and len(raw) <= SHORT:
        upper = bytes(raw[width - 1 :: width])
        if b"\x7f" not in upper and b"\xff" not in upper:
            return True
    kind, mask = _EXPONENT[dtype]
    numbers = np.frombuffer(raw, dtype=kind)
    return numbers.size == 0 or int(np.maximum.reduce(numbers & mask)) < mask
