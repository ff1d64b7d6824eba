"""Matrices in the orders of FBGEMM, the library of kernels that torch carries for x86 processors.

Its kernels are reached by torch's operators for quantised layers, which stay though torch advises to quantise by a package of its own.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runtime.unused_tail import made_tight

EIGHT_BITS, SEVEN_BITS = 127, 63
"""The greatest whole number of an activation: sums of two products of more than 7 bits don't fit 16 where there are no instructions (VNNI)
that add up in 32."""
_BLOCK, _COLUMNS, _PADDING = 512, 16, 1_024
"""Of matrices in fp16: what is as wide, and as high, lies together; bytes that kernels may read beyond."""
_WORTH = 1 << 18
"""Bytes that lie unused from which they are given back."""


@functools.cache
def available() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def pack_int8(whole: torch.Tensor, scale: torch.Tensor) -> object:
    """Whole numbers of 8 bits [out, in], a scale for each row [out]."""
    with _packing():
        given = torch._make_per_channel_quantized_tensor(whole, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0)
        return torch.ops.quantized.linear_prepack(given, None)


def pack_fp16(weight: torch.Tensor, bias: torch.Tensor | None) -> object:
    """[out, in] and [out] in fp32; what is beyond fp16's range is cut to it."""
    out, width = weight.shape
    high = -(-out // _COLUMNS) * _COLUMNS

    def pack() -> object:
        with _packing(), torch.inference_mode():
            return torch.ops.quantized.linear_prepack_fp16(weight, bias)

    unused = 2 * high * (-width % _BLOCK)
    return made_tight(pack, 2 * high * width + _PADDING) if unused >= _WORTH else pack()


def times_int8(x: torch.Tensor, packed: object, greatest: int) -> torch.Tensor:
    """`x` [rows, in] in fp32, rounded to whole numbers of -greatest..greatest, times a packed matrix: [rows, out] in fp32."""
    out: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(x, 1.0, greatest + 1, packed)
    return out


def times_fp16(x: torch.Tensor, packed: object) -> torch.Tensor:
    """The same of a matrix in fp16, `x` as it is."""
    out: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, packed)
    return out


@functools.cache
def greatest_exact() -> int | None:
    """`EIGHT_BITS` or `SEVEN_BITS`: of how many bits activations may be for exact sums; None where FBGEMM isn't here or keeps neither."""
    if not available():
        return None
    packed = pack_int8(torch.full((16, 64), 127, dtype=torch.int8), torch.ones(16))
    for greatest in (EIGHT_BITS, SEVEN_BITS):
        found = [times_int8(torch.full((2, 64), float(each)), packed, greatest) for each in (greatest, -greatest)]
        if all(bool((out == each * 127 * 64).all()) for out, each in zip(found, (greatest, -greatest), strict=True)):
            return greatest
    return None


@contextmanager
def _packing() -> Iterator[None]:
    """FBGEMM's order, whatever engine torch is set to otherwise."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before
