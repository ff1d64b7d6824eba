"""Matrices as the kernels read them: bf16 as they came, int8 row by row, int4 in the order of torch's packed kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime.int4_order import rows_in_block
from runtime.lean_shape import Matrix
from runtime.linear import GROUP, round_int4
from runtime.linear_int8 import round_int8
from runtime.native import fields as f

LANES = 8
"""A matrix has a multiple of so many rows, and numbers in each."""


@dataclass(frozen=True)
class Stored:
    """`kind`: a field's value, for int4 with the height of its blocks; `scales` in fp32 a row, or bf16 pairs of scale and zero."""

    kind: int
    weight: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None
    rows: int
    width: int

    @property
    def nbytes(self) -> int:
        return int(self.weight.nbytes + (0 if self.scales is None else self.scales.nbytes))

    def fields(self) -> list[int]:
        return [self.kind, self.weight.data_ptr(), _address(self.scales), _address(self.bias), self.rows, self.width]


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else int(tensor.data_ptr())


def store(matrix: Matrix, precision: str) -> Stored:
    """What stays as it came is copied out of the memory it came in, unless it was joined, which is a copy."""
    weight, bias = matrix.joined()
    if precision == "bf16" and len(matrix.parts) == 1:
        weight = weight.clone()
    return stored(weight, bias, precision)


def stored(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Stored:
    """`weight` [out, in] and `bias` [out] in bf16."""
    rows, width = weight.shape
    block = rows_in_block()
    if precision == "int4" and block and rows % block == 0 and width % GROUP == 0:
        whole, scale, zero = round_int4(weight)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
        return Stored(f.INT4 + block, packed, torch.stack((scale, zero), -1).transpose(0, 1).contiguous(), bias, rows, width)
    if precision in ("int8", "int4"):
        small, scales = round_int8(weight)
        return Stored(f.INT8, small, scales, bias, rows, width)
    return Stored(f.BF16, weight.contiguous(), None, bias, rows, width)
