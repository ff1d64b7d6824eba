"""Matrices as they are stored for each precision, and the kernel that multiplies by them.

A stored form is made once, at load, and serves every batch size; where there are two kernels they read the same bytes.
Microseconds for 3072 x 576 on two Zen 4 cores, 1 / 16 / 64 rows:

    bf16   F.linear                                356 / 511 /  910   any device; what a tied head keeps, since it is the embedding
           packed by oneDNN                        124 / 241 /  679   the same numbers in another order of bytes
    int8   `_weight_int8pack_mm`                    97 / 757 / 1852   one scale a row of the matrix; up to three rows
           `_int_mm`, activations as two int8 rows  45 / 213 /  627   8 + 8 bits of each activation; from four rows on
           cast to bf16 on the way                 314 / 456 /  722   from 32 rows on
           FBGEMM, the same in its own order        43 / 200 /  686   the head
    int4   `_weight_int4pack_mm_for_cpu`            67 / 424 / 1382   groups of 32 with scale and zero in bf16; up to 55 rows
           the same bytes as bf16 on the way                          `runtime/int4_order.py`
           two in a byte, bf16 on the way                             other devices than the CPU; never tried on one

Processors without instructions for products of bf16 or of 8-bit numbers (`runtime/processor.py`) do those one by one. Microseconds for the
same matrix on two Zen 3 cores, 1 / 4 / 16 / 64 rows:

    bf16   F.linear                                220 / 844 / 2858 / 11470   as transformers does
           FBGEMM, in fp16                         145 / 237 /  535 /  1723   `runtime/linear_half.py`, on Zen 4 held to AVX2,
                                                   where F.linear takes 143 / 683 / 2565 / 10149
           in fp32, cast on the way                  – / 738 /  930 /  2000
           the same, made as F.linear gives it       – /   – / 2420 /  4340   `runtime/linear_wide.py`: a large tied head, from 16 rows on
    int8   `_weight_int8pack_mm`                   113 / 250 /  923 /  2656
           `_int_mm`                              1934 / 4941 / 18697 / 73647
           in fp32, cast on the way                364 / 738 /  842 /  2028
    int4   `_weight_int4pack_mm_for_cpu`           140 / 276 /  681 /  2724

In what is used of these a row's result doesn't depend on the others, nor on how many they are (`runtime/row_attention.py` builds on it).
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F

from runtime.fbgemm import greatest_exact
from runtime.int4_order import rows_in_block, unpacked
from runtime.linear_half import halved, halves_are_exact
from runtime.linear_int8 import Int8, Int8Head
from runtime.linear_plain import Plain
from runtime.linear_wide import Wide
from runtime.processor import each_product_alone, multiplies_bf16, multiplies_fp16

GROUP = 32
"""Weights of a row that share scale and zero in int4."""
_NOTHING: list[float | None] = []
_INT4_ROWS = 16
"""The packed kernel takes matrices of a multiple of this many rows."""
_MANY_INT4 = 56
"""The same of int4, whose order of bytes takes longer to undo."""
_TILE_INT4 = 1 << 22
"""Weights of int4 that are in bf16 at a time."""
_PACK_FOR = 64
"""Rows of activations that oneDNN is told to expect; the order of bytes that this gives is good from 1 on."""


class Linear(Protocol):
    """`x` [rows, in] in bf16 (fp32 in the reference mode) to [rows, out] of the same dtype; `nbytes` held for the matrix."""

    nbytes: int
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        """The kernel that a single row goes through, as `compiled_shape.KINDS`, and its tensors without the bias; None: none of those."""


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Linear:
    """The stored form of `weight` [out, in] for `precision`. The same weights give the same bytes."""
    cpu = weight.device.type == "cpu"
    if precision == "int4" and weight.shape[1] % GROUP == 0 and weight.shape[0] % _INT4_ROWS == 0:
        return Int4(weight, bias) if cpu else Int4Elsewhere(weight, bias)
    if precision in ("int8", "int4"):
        return Int8(weight, bias)
    return _make_bf16(weight, bias) if precision == "bf16" and cpu else make_plain(weight, bias)


def _make_bf16(weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool = False) -> Linear:
    """`wide`: results may be in fp32."""
    if multiplies_bf16():
        return Packed(weight, bias) if torch.backends.mkldnn.is_available() and _packs() else make_plain(weight, bias)
    half = halved(weight, bias, wide=wide) if multiplies_fp16() and halves_are_exact() else None
    return half or make_plain(weight, bias)


def make_plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Plain:
    """Where the tensor lies, whatever multiplies by it."""
    cpu = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return Wide(weight, bias) if cpu and not multiplies_bf16() and each_product_alone() else Plain(weight, bias)


def make_head(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Linear:
    """The head's: 8 bits where the rest has 4."""
    if precision in ("int8", "int4"):
        most = greatest_exact() if weight.device.type == "cpu" else None
        return Int8Head(weight, bias, most) if most else Int8(weight, bias)
    cpu = weight.device.type == "cpu"
    return _make_bf16(weight, bias, wide=True) if precision == "bf16" and cpu else make_linear(weight, bias, precision)


class Packed:
    """bf16 in oneDNN's own order."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_FOR)
        self.bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, self._weight, self.bias, "none", _NOTHING, "")

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        return None


class Int4:
    """Groups of 32 along a row, each with its scale and zero."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        whole, scale, zero = round_int4(weight)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
        self._scales = torch.stack((scale, zero), -1).transpose(0, 1).contiguous()
        self.bias = bias
        self.nbytes = self._weight.nbytes + self._scales.nbytes
        found = rows_in_block() if multiplies_bf16() and weight.dtype == torch.bfloat16 else None
        self._block = found if found and len(weight) % found == 0 else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._block and len(x) >= _MANY_INT4:
            out = self._in_bf16(x, self._block)
        else:
            out = torch._weight_int4pack_mm_for_cpu(x, self._weight, GROUP, self._scales)
        return out if self.bias is None else out.add_(self.bias)

    def _in_bf16(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """By tiles of whole blocks, so that what is unpacked at a time stays small however large the matrix is."""
        width, total = x.shape[1], len(self._weight)
        step = max(1, _TILE_INT4 // (width * rows)) * rows
        out, room = x.new_empty(len(x), total), x.new_empty(width * min(step, total))
        for begin in range(0, total, step):
            part = slice(begin, min(begin + step, total))
            tile = room[: width * (part.stop - begin)].view(width, -1)
            out[:, part] = x @ unpacked(self._weight[part], self._scales[:, part], rows, tile)
        return out

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        return "int4", [self._weight, self._scales]


class Int4Elsewhere:
    """The same numbers on a device that the packed kernel doesn't know: two in a byte, made bf16 anew for each pass."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        whole, self._scale, self._zero = round_int4(weight)
        both = whole.to(torch.uint8)
        self._weight = both[:, ::2] << 4 | both[:, 1::2]
        self.bias = bias
        self.nbytes = self._weight.nbytes + self._scale.nbytes + self._zero.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(self._weight)
        whole = torch.stack((self._weight >> 4, self._weight & 15), -1).view(rows, -1, GROUP).to(self._scale.dtype) - 8
        weight = whole * self._scale.unsqueeze(-1) + self._zero.unsqueeze(-1)
        return F.linear(x, weight.view(rows, -1).to(x.dtype), self.bias)

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        return None


def round_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole numbers 0..15 [out, in] in int32, scale and zero of each group [out, in / 32] in bf16: weight = (whole - 8) * scale + zero.

    The least and the greatest weight of a group are met; scale and zero are rounded first, so that the whole numbers fit them.
    """
    rows, width = weight.shape
    groups = weight.float().view(rows, width // GROUP, GROUP)
    least, greatest = groups.aminmax(dim=-1)
    scale = ((greatest - least) / 15).clamp_min(1e-12).bfloat16()
    zero = (least + 8 * scale.float()).bfloat16()
    whole = groups.sub_(zero.float().unsqueeze(-1)).div_(scale.float().unsqueeze(-1)).add_(8).round_().clamp_(0, 15)
    return whole.to(torch.int32).view(rows, width), scale, zero


@functools.cache
def _packs() -> bool:
    """Whether oneDNN multiplies packed bf16 here: it refuses processors without the instructions."""
    weight = torch.arange(32 * 32).view(32, 32).remainder(5).bfloat16()
    try:
        out = Packed(weight, None)(torch.eye(32, dtype=torch.bfloat16))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool(torch.equal(out, weight.t()))
