"""What this machine's processor multiplies quickly, found out by trying: each kernel of torch works everywhere, on some processors by a
loop over single numbers.

Flags of the processor don't tell: kernels come from oneDNN, FBGEMM or torch itself, by rules of their own. What is compared differs
by a factor of three and more either way on the machines seen (Zen 3, Zen 4), in turns, by what one thread spent on the processor: by
the clock one process of five tried took the wrong way while others were busy, with two threads, which wait for each other, five of
twelve, and a reply shouldn't change with the weather. Once a process.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from runtime import fbgemm

_ROWS, _WIDTH = 32, 768
_TRIES = 5
_ABOUT = 1.5
"""Without instructions for it bf16 takes 2.5 to 4.5 times as long on a busy machine, with them less than fp32."""


@functools.cache
def multiplies_bf16() -> bool:
    """Whether several rows of bf16 are multiplied about as quickly as in fp32."""
    weight, x = torch.ones(_WIDTH, _WIDTH), torch.ones(_ROWS, _WIDTH)
    narrow_weight, narrow_x = weight.bfloat16(), x.bfloat16()
    narrow, wide = _least(lambda: F.linear(narrow_x, narrow_weight), lambda: F.linear(x, weight))
    return narrow < _ABOUT * wide


@functools.cache
def multiplies_fp16() -> bool:
    """Whether several rows are multiplied faster by a matrix that FBGEMM keeps in fp16 than by one in bf16."""
    if not fbgemm.available():
        return False
    weight, x = torch.ones(_WIDTH, _WIDTH).bfloat16(), torch.ones(_ROWS, _WIDTH).bfloat16()
    packed = fbgemm.pack_fp16(weight.float(), None)
    half, narrow = _least(lambda: fbgemm.times_fp16(x.float(), packed), lambda: F.linear(x, weight))
    return half < narrow


@functools.cache
def each_product_alone() -> bool:
    """Whether a number of a product in bf16 depends on its row and column alone: not on how many others there are, nor on its place."""
    given = torch.Generator().manual_seed(1)
    for width in (96, 576, 1_000):
        x, weight = (torch.randn(rows, width, generator=given).bfloat16() for rows in (_ROWS + 3, 192))
        bias = torch.randn(192, generator=given).bfloat16()
        columns, some = torch.tensor([7, 64, 65, 130, 191]), slice(8, 16)
        for all_bias, own_bias in ((None, None), (bias, bias[columns])):
            together = F.linear(x, weight, all_bias)
            apart = torch.cat([F.linear(row, weight, all_bias) for row in x.split(1)])
            part = F.linear(x[some], weight[columns], own_bias)
            if not torch.equal(together, apart) or not torch.equal(together[some][:, columns], part):
                return False
    return True


@functools.cache
def multiplies_whole_numbers() -> bool:
    """Whether 8-bit numbers are multiplied faster than by torch's kernel for matrices of 8 bits and rows of bf16."""
    weight, x = torch.ones(_WIDTH, _WIDTH, dtype=torch.int8), torch.ones(2 * _ROWS, _WIDTH, dtype=torch.int8)
    rows, scale = torch.ones(_ROWS, _WIDTH).bfloat16(), torch.ones(_WIDTH).bfloat16()
    try:
        whole, mixed = _least(lambda: torch._int_mm(x, weight.t()), lambda: torch._weight_int8pack_mm(rows, weight, scale))
    except RuntimeError:
        return False
    return whole < mixed


_CLOCK = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter


def _least(*runs: Callable[[], object]) -> list[float]:
    """Seconds of the quickest try of each, tried in turns by one thread: two wait for each other, and whoever waits isn't idle."""
    found: list[list[float]] = [[] for _ in runs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(_TRIES):
                for run, took in zip(runs, found, strict=True):
                    began = _CLOCK()
                    run()
                    took.append(_CLOCK() - began)
    finally:
        torch.set_num_threads(threads)
    return [min(took) for took in found]
