"""What one element, or one block of elements, takes: for tensors as safetensors has them and for the quantised ones of GGUF."""

from __future__ import annotations

import math
from collections.abc import Sequence

from protocol.errors import BadInput

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one element, by safetensors' word."""

BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q8_1": (32, 40),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "Q8_K": (256, 292),
    "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ3_XXS": (256, 98), "IQ1_S": (256, 50), "IQ4_NL": (32, 18), "IQ3_S": (256, 110),
    "IQ2_S": (256, 82), "IQ4_XS": (256, 136), "IQ1_M": (256, 56), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17),
}  # fmt: skip
"""(elements, bytes) of a block, by GGUF's word. Blocks run along the last dimension."""


def tensor_bytes(name: str, dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this dtype and shape takes; `BadInput` for a dtype unknown, or a last side of half blocks."""
    count = math.prod(shape)
    if dtype in BLOCKS:
        elements, size = BLOCKS[dtype]
        if not shape or shape[-1] % elements:
            raise BadInput(f"tensor {name[:64]!r}: the last side of {list(shape)} isn't a multiple of {elements}, as {dtype} needs")
        return count // elements * size
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        raise BadInput(f"tensor {name[:64]!r}: unknown dtype {dtype[:16]!r}")
    if count * bits % 8:
        raise BadInput(f"tensor {name[:64]!r}: the shape {list(shape)} of {dtype} ends within a byte")
    return count * bits // 8
