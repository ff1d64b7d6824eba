"""Products of bf16 on processors without instructions for them: through fp32, and yet to the last bit what torch's own kernel gives.

Problem: torch multiplies bf16 number by number there, at a fifth of the speed of fp32, and prompts, replays and crowds wait for it. In fp32
the sums come in another order; about one number in ten thousand is then rounded to the other neighbour in bf16, and greedy replies part
from transformers' where two tokens are nearly as good.

Choice: multiply in fp32, and look at which numbers lie so near the middle between two of bf16 that another order of the sum could have
rounded them the other way (one in a hundred); those, and their neighbours of a few rows, are taken from torch's own kernel. That
gives each number by its row and column alone (`each_product_alone` tries), so the rest of a matrix needn't be multiplied for it.

How near is near: the step of fp32 times the length of the row times that of the column (no sum of products is larger, by Cauchy and
Schwarz) is what the orders may differ by. Over 1,536 tokens through SmolLM2-135M nothing differed, of 75 million logits; with half of
it 40 did, by a bit. A miss costs the last bit of one number, no more.

Rejected: matrices kept in fp32 (twice the memory; the cast on the way takes a tenth of the time), only fp32 (replies part).
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F

from runtime.linear_plain import Plain

FROM = 16
"""Rows from which it is the faster way."""
_NEAR = 2.0**-23
_BLOCK = 8
"""Rows that are looked after together where numbers are near the middle: fewer make more calls, more multiply more that isn't near."""
_TILE = 1 << 20
"""Weights that are in fp32 at a time."""


class Wide(Plain):
    """The tensor itself, where it lies; many rows through fp32. `weight` [out, in] and `bias` in bf16 on the CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._lengths = torch.linalg.vector_norm(weight, 2, -1, dtype=torch.float32)
        self._least = None if bias is None else bias.float().abs().mul_(_NEAR)
        self._step = max(1, _TILE // weight.shape[1])
        self.nbytes += self._lengths.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) < FROM:
            return super().__call__(x)
        wide, out = x.float(), torch.empty((len(x), len(self._weight)), dtype=x.dtype)
        lengths = torch.linalg.vector_norm(wide, 2, -1).mul_(_NEAR)
        for begin in range(0, len(self._weight), self._step):
            self._part(slice(begin, begin + self._step), x, wide, lengths, out)
        return out

    def _part(self, part: slice, x: torch.Tensor, wide: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor) -> None:
        """The columns `part` of `out`, by those rows of the matrix."""
        weight, bias = self._weight[part], None if self.bias is None else self.bias[part]
        products = torch.mm(wide, _scratch(weight.numel()).view(weight.shape).copy_(weight).t())
        within = torch.outer(lengths, self._lengths[part])
        if bias is not None and self._least is not None:
            products.add_(bias)
            within.add_(self._least[part])
        above = torch.add(products, within).to(x.dtype)
        below = products.sub_(within).to(x.dtype)
        for rows, columns in _blocks(above != below):
            own = None if bias is None else bias[columns]
            below[rows].index_copy_(1, columns, F.linear(x[rows], weight[columns], own))
        out[:, part] = below


def _blocks(near: torch.Tensor) -> list[tuple[slice, torch.Tensor]]:
    """Some rows each, and the columns in which any of them is near."""
    whole = len(near) - len(near) % _BLOCK
    some = near[:whole].view(-1, _BLOCK, near.shape[1]).any(1)
    if whole < len(near):
        some = torch.cat([some, near[whole:].any(0, keepdim=True)])
    columns = some.nonzero()[:, 1].split(some.sum(1).tolist())
    return [(slice(at * _BLOCK, (at + 1) * _BLOCK), each) for at, each in enumerate(columns) if len(each)]


_ROOM = threading.local()
"""Memory that is asked for once by each thread: new pages would cost more than the cast."""


def _scratch(numbers: int) -> torch.Tensor:
    room: torch.Tensor | None = getattr(_ROOM, "numbers", None)
    if room is None or numbers > len(room):
        with torch.inference_mode(False):
            room = _ROOM.numbers = torch.empty(max(numbers, _TILE))
    return room[:numbers]
