"""bf16 matrices as fp16 in FBGEMM's order, for processors without instructions for bf16.

Problem: torch multiplies bf16 number by number there: eight rows take eight times as long as one, and crowds, prompts and replays wait.
Choice: FBGEMM keeps matrices in fp16 and widens them in registers, at full speed in fp32; its numbers aren't those of torch's
own kernel to the last bit (sums in another order), but a row's are its own, however many rows there are. That takes some care: blocks of
one and two rows add up in an order of their own, and rows are dealt to blocks of three to six only where their number is a multiple of
three (or three, four or five beyond one of six); so they are made one. A row by itself
takes 364 microseconds in SmolLM2's four matrices of a layer in place of 270, and 1.4 milliseconds in its head in place of 2.5; eight
rows of 3072 x 576 take 396 in place of 1831 (Zen 4 held to AVX2, two threads).

fp16 holds what bf16 holds from 2^-14 to 65504; below, steps of 2^-24. A matrix whose rows lose more by that than a 2^17th of their greatest
number (bf16 itself rounds to a 2^9th) isn't stored so: `halved` gives None.

Rejected: torch's numbers by looking after those near a rounding (`runtime/linear_wide.py`: it needs the matrix in bf16 beside this one);
FBGEMM's kernel for single rows (a reply by itself would part from the same reply in company, or taken up again).
"""

from __future__ import annotations

import functools

import torch

from runtime import fbgemm

BLOCK = 3
"""Rows are made a multiple of it."""
_LOST = 2.0**-17
_TILE = 1 << 20
"""Weights that are looked at together."""
_TRIED = (1, 2, *range(3, 43, BLOCK), 63, 126)
"""Rows: every remainder by the blocks of 6 that AVX2's kernels take, and by AVX-512's of 14."""
_SAFE = (0x3B80, 0x477F)
"""2^-8 and 65,280, as bf16's bits: a row whose greatest lies between loses no more than a 2^17th of it, whatever else is in it."""


class Half:
    """`weight` [out, in] and `bias` [out] in bf16 on the CPU; `halved` says whether fp16 holds them. `wide` leaves results in fp32: a
    head's are many, and in fp32 there are no ties that bf16 would make."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool = False) -> None:
        self._weight = fbgemm.pack_fp16(weight.float(), None if bias is None else bias.float())
        self.bias = bias
        self.nbytes = weight.nbytes
        self._wide = wide

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        missing = -rows % BLOCK
        if missing:
            filled = x.expand(BLOCK, -1) if rows == 1 else torch.cat((x, x[:missing]))
            out = fbgemm.times_fp16(filled.float(), self._weight)[:rows]
        else:
            out = fbgemm.times_fp16(x.float(), self._weight)
        return out if self._wide else out.to(x.dtype)

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        return None


def halved(weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool = False) -> Half | None:
    """None where fp16 would lose what matters, or numbers that aren't any."""
    step = max(1, _TILE // max(weight.shape[1], 1))
    holds = all(_plainly(part) or _holds(part) for part in weight.split(step))
    return Half(weight, bias, wide=wide) if holds else None


def _plainly(weight: torch.Tensor) -> bool:
    """By the bits of magnitudes, which are in the order of the numbers: one look at each in place of eight. What is none is above all."""
    least, greatest = weight.view(torch.int16).bitwise_and(0x7FFF).amax(1).aminmax()
    return _SAFE[0] <= int(least) and int(greatest) <= _SAFE[1]


def _holds(weight: torch.Tensor) -> bool:
    wide = weight.float()
    lost = wide.half().float().sub_(wide).abs_().amax(1)
    return bool((lost <= wide.abs_().amax(1).mul_(_LOST)).all())


@functools.cache
def halves_are_exact() -> bool:
    """Whether FBGEMM is here, multiplies as it should, and gives a row the same numbers in any company."""
    if not fbgemm.available():
        return False
    rng = torch.Generator().manual_seed(1)
    for out, width in ((96, 576), (72, 1_536)):
        weight = torch.randn(out, width, generator=rng).bfloat16()
        x = torch.randn(max(_TRIED), width, generator=rng).bfloat16()
        made = halved(weight, None)
        if made is None:
            return False
        right = made(x)
        if not torch.allclose(right.float(), x.float() @ weight.float().t(), rtol=2**-7, atol=2**-7 * width**0.5):
            return False
        if not all(torch.equal(made(x[-count:]), right[-count:]) for count in _TRIED):
            return False
    return True
