"""Matrices in 8 bits, one scale a row.

An activation row is its greatest magnitude times (coarse + fine / 2m) / m, coarse and fine whole numbers of -m..m; both go through one
multiplication of whole numbers, whose sums are exact, so that a row's result doesn't depend on its neighbours. With 8 bits (m = 127)
that is closer to the stored weights than bf16 activations are, and costs what a bf16 multiplication costs. Where sums of 8-bit products
overflow (processors without VNNI; `whole_products_are_exact` and `fbgemm.greatest_exact` try) only the head does so, with 7 bits
(m = 63): within a 2^15th of the row's greatest. For one row the calls that cut activations in two take longer than they save, except
for the head.

Rejected: activations in 8 bits alone (twice as fast from 16 rows on, but a row with one large value loses the small ones), one scale for
a whole batch (a reply would depend on its neighbours), 7 bits in the layers (without VNNI, SmolLM2: 64 rows in 272 ms in place of 381, but
one in 33 in place of 21), a 4-bit head (agrees with bf16 in 81-84 % of words, 8 bits in 97 %).
"""

from __future__ import annotations

import functools
import sys

import torch
import torch.nn.functional as F

from runtime import fbgemm
from runtime.fbgemm import EIGHT_BITS
from runtime.processor import multiplies_bf16, multiplies_whole_numbers

_FEW = 3
"""Rows up to which int8 goes through torch's own kernel."""
_MANY = 32
"""Rows from which int8 is cast to bf16 on the way: the cast costs the same for any number of rows."""


def round_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers [out, in] and a scale for each row [out] in fp32."""
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp_min(1e-12)
    return wide.div_(scale.unsqueeze(1)).round_().to(torch.int8), scale


def in_two(x: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` [rows, width] as numbers of -most..most [2 * rows, width] in fp32, coarse ones first, and each row's greatest [rows, 1].

    The fine ones are still to be rounded: FBGEMM does that itself.
    """
    rows = len(x)
    greatest = torch.linalg.vector_norm(x, float("inf"), -1, True, dtype=torch.float32).clamp_min_(1e-30)
    both = torch.empty((2 * rows, x.shape[1]), device=x.device)
    coarse, fine = both.chunk(2)
    torch.mul(x, most / greatest, out=fine)
    torch.round(fine, out=coarse)
    fine.sub_(coarse).mul_(2 * most)
    return both, greatest


def joined(products: torch.Tensor, greatest: torch.Tensor, most: int) -> torch.Tensor:
    coarse, fine = products.chunk(2)
    return torch.add(coarse, fine.float(), alpha=1 / (2 * most)).mul_(greatest.div_(most))


class Int8:
    """Few rows go through torch's own kernel, some through a multiplication of whole numbers where exact, many through bf16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._wide_scale = round_int8(weight)
        self._scale = self._wide_scale.to(weight.dtype)
        self.bias = bias
        cpu = weight.device.type == "cpu"
        self._exact = cpu and multiplies_whole_numbers() and whole_products_are_exact()
        # Where whole numbers are multiplied one by one, any number: each row by itself is worth more than the third that many would save.
        few = _FEW if self._exact or multiplies_bf16() else sys.maxsize
        self._few = few if cpu and weight.dtype == torch.bfloat16 else 0
        self.nbytes = self._weight.nbytes + self._wide_scale.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) <= self._few:
            out = torch._weight_int8pack_mm(x, self._weight, self._scale)
        elif self._exact and len(x) < _MANY:
            both, greatest = in_two(x, EIGHT_BITS)
            products = torch._int_mm(both.round_().to(torch.int8), self._weight.t())
            out = joined(products, greatest, EIGHT_BITS).mul_(self._wide_scale).to(x.dtype)
        else:
            out = F.linear(x, self._weight.to(x.dtype)) * self._scale
        return out if self.bias is None else out + self.bias

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        return ("int8", [self._weight, self._scale]) if self._few else None


class Int8Head:
    """The same numbers in FBGEMM's order: the fastest for a large matrix, but for small ones what is done to the activations first
    takes longer than the multiplication. Gives fp32, in which there are no ties that bf16 would make. `most`: `fbgemm.greatest_exact`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, most: int) -> None:
        whole, scale = round_int8(weight)
        self._weight, self._most = fbgemm.pack_int8(whole, scale), most
        self.bias = None if bias is None else bias.float()
        self.nbytes = whole.nbytes + scale.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        both, greatest = in_two(x, self._most)
        out = joined(fbgemm.times_int8(both, self._weight, self._most), greatest, self._most)
        return out if self.bias is None else out.add_(self.bias)

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        return None


@functools.cache
def whole_products_are_exact() -> bool:
    """Whether `_int_mm` keeps sums that would overflow 16 bits, with both signs."""
    one = torch.full((8, 64), 127, dtype=torch.int8)
    try:
        products = [torch._int_mm(one, other.t()) for other in (one, -one)]
    except RuntimeError:
        return False
    return bool((products[0] == 127 * 127 * 64).all()) and bool((products[1] == -127 * 127 * 64).all())
