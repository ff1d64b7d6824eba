"""A layer for one row, as torch's compiler takes it: all tensors are arguments, so that one compiled form serves every layer of a shape.

What is fused are the many small steps between the matrices: norms, rotation, activation, sums. The matrices stay calls of the same
kernels that `linear.py` uses for one row. Attention isn't in it: its past lies in slabs whose strides change (runtime/kv_slabs.py), and
torch's fused kernel is as fast called from outside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from runtime.compiled_shape import LayerShape

GROUP = 32
_ACTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class _Given:
    """The tensors after the first ones, taken in the order in which `compiled.py` lays them out."""

    def __init__(self, given: tuple[torch.Tensor, ...]) -> None:
        self._given, self._at = given, 0

    def take(self) -> torch.Tensor:
        self._at += 1
        return self._given[self._at - 1]

    def product(self, x: torch.Tensor, stored: str, biased: bool) -> torch.Tensor:
        weight = self.take()
        if stored == "int8":
            out = torch._weight_int8pack_mm(x, weight, self.take())
        elif stored == "int4":
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, GROUP, self.take())
        else:
            out = F.linear(x, weight)
        return out + self.take() if biased else out


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


class Enter(nn.Module):  # type: ignore[misc]
    """(x [1, hidden], cosines and sines [1, 1, rotated], norm, head norm?, qkv) -> heads [1, heads + 2 kv_heads, head_dim], turned."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        shape, given = self._shape, _Given(rest)
        entered = _normed(x, given.take(), shape.eps)
        head_norm = given.take() if shape.head_norm else None
        heads = given.product(entered, shape.stored[0], shape.biased[0]).view(1, -1, shape.head_dim)
        turned, values = heads[:, : shape.heads + shape.kv_heads], heads[:, shape.heads + shape.kv_heads :]
        if head_norm is not None:
            turned = _normed(turned, head_norm, shape.eps)
        inside, beyond = turned[..., : shape.rotated], turned[..., shape.rotated :]
        half = shape.rotated // 2
        swapped = torch.cat((inside[..., half:], inside[..., :half]), -1)
        inside = inside * cos + swapped * sin
        return torch.cat((torch.cat((inside, beyond), -1), values), 1)


class Leave(nn.Module):  # type: ignore[misc]
    """(x [1, hidden], attended [1, heads * head_dim], out, norm after?, norm before, gate and up, down, norm after?) -> x."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, x: torch.Tensor, attended: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        shape, given = self._shape, _Given(rest)
        added = given.product(attended, shape.stored[1], shape.biased[1])
        x = x + (_normed(added, given.take(), shape.eps) if shape.sandwich else added)
        gate, up = given.product(_normed(x, given.take(), shape.eps), shape.stored[2], shape.biased[2]).chunk(2, -1)
        added = given.product(_ACTS[shape.act](gate) * up, shape.stored[3], shape.biased[3])
        return x + (_normed(added, given.take(), shape.eps) if shape.sandwich else added)


def piece(shape: LayerShape, part: str) -> nn.Module:
    return Enter(shape) if part == "enter" else Leave(shape)


def made_up(shape: LayerShape, part: str) -> tuple[torch.Tensor, ...]:
    """Arguments of the right shapes, in the order of `forward`. Each a tensor of its own: the compiler makes one argument of a tensor given
    twice, and sines would be read from the cosines."""
    x = torch.zeros(1, shape.hidden, dtype=torch.bfloat16)
    matrices = [_matrix(*both) for both in zip(shape.widths(), shape.stored, shape.biased, strict=True)]
    if part == "enter":
        cos, sin = (torch.zeros(1, 1, shape.rotated, dtype=torch.bfloat16) for _ in range(2))
        head_norm = [torch.ones(shape.heads + shape.kv_heads, shape.head_dim)] if shape.head_norm else []
        return (x, cos, sin, torch.ones(shape.hidden), *head_norm, *matrices[0])
    after_attention, before_mlp, after_mlp = (torch.ones(shape.hidden) for _ in range(3))
    attended = torch.zeros(1, shape.heads * shape.head_dim, dtype=torch.bfloat16)
    first, last = ([after_attention], [after_mlp]) if shape.sandwich else ([], [])
    return (x, attended, *matrices[1], *first, before_mlp, *matrices[2], *matrices[3], *last)


def _matrix(size: tuple[int, int], stored: str, biased: bool) -> list[torch.Tensor]:
    rows, width = size
    bias = [torch.zeros(rows, dtype=torch.bfloat16)] if biased else []
    if stored == "int8":
        return [torch.zeros(size, dtype=torch.int8), torch.ones(rows, dtype=torch.bfloat16), *bias]
    if stored == "int4":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.zeros(size, dtype=torch.int32), 1)
        return [packed, torch.ones(width // GROUP, rows, 2, dtype=torch.bfloat16), *bias]
    return [torch.zeros(size, dtype=torch.bfloat16), *bias]
