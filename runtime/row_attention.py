"""Attention of many rows in which each is to the last bit what it is by itself.

Problem: fused attention multiplies the new positions of a prompt or of a replay as one matrix, and its sums come in an order that depends
on how many rows there are and on how far the keys reach. One number of bf16 that is rounded the other way is enough: thirty layers on
nearly all of them are, logits part by 0.1, and one greedy token in fifty. A reply then depends on who else is there, and what a
stand-by computes again isn't what was lost.

Choice: where the matrices give each row by itself already (`processor.each_product_alone`), attention does too. The query heads of a
row that share a key head are one small matrix, never more than three rows of it (from four on the product takes another way through
the keys), and the keys reach to a multiple of 16, what is beyond hidden by the mask: added zeros change nothing. Blocks of 512 keys,
of which fused attention keeps the greatest, begin at a multiple of 512 whatever a window leaves out. MKL is told to sum alike wherever a
matrix lies (`MKL_CBWR`, in the worker's environment: one row in five hundred differed by where its thread keeps what). Measured over
lengths from 20 to 1,300, heads of 16 to 128 in groups of 1 to 8: no bit differed; with one matrix for all rows one row in four did.

Rejected: attention in fp32 (casts all keys for each token), keys to whole blocks of 512 (a third more for short replies).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from runtime.processor import each_product_alone, multiplies_bf16

REACH = 16
"""Keys end at a multiple of it; rooms of slabs are such multiples."""
BLOCK = 512
"""Keys that fused attention takes at a time."""
_TALL = 3
_BAND = 64
"""Rows of one sequence that share how far the keys reach: fewer make more calls, more look at more that is hidden from most."""


def one_by_one(kv: torch.Tensor) -> bool:
    """Whether these are bf16 on a processor that multiplies it one by one."""
    return kv.device.type == "cpu" and kv.dtype == torch.bfloat16 and not multiplies_bf16()


def by_rows(kv: torch.Tensor) -> bool:
    """Whether each row is worth being by itself in attention: it is in the matrices."""
    return one_by_one(kv) and each_product_alone()


def end_of(positions: int) -> int:
    """How far the keys of a row that sees `positions` reach."""
    return -(-positions // REACH) * REACH


def begin_of(first_seen: int) -> int:
    """Where they begin."""
    return first_seen // BLOCK * BLOCK


@functools.cache
def tall(group: int) -> int:
    """Query heads of one small matrix: the most that part a group evenly, three at most."""
    return next(size for size in range(_TALL, 0, -1) if group % size == 0)


def attend_one(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """`q` [1, kv_heads, group, head_dim] over `keys`, `values` [1, kv_heads, reach, head_dim]; `mask` [1, reach] to add, None: all seen."""
    _, kv_heads, group, width = q.shape
    high = tall(group)
    if high == group:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    shared = (kv_heads, group // high, keys.shape[2], width)
    k, v = (one[0].unsqueeze(1).expand(shared) for one in (keys, values))
    return F.scaled_dot_product_attention(q.reshape(kv_heads, -1, high, width), k, v, attn_mask=mask, scale=scale)


def attend_many(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Rows of one sequence, the last ones that its keys hold: `q` [rows, kv_heads, group, head_dim], `keys`, `values`
    [1, kv_heads, reach, head_dim], `mask` [rows, reach]; result [rows, kv_heads * group, head_dim].
    """
    rows, reach = mask.shape
    found = []
    for begin in range(0, rows, _BAND):
        end = min(begin + _BAND, rows)
        to = end_of(reach - (rows - end))
        found.append(_band(q[begin:end], keys[0, :, :to], values[0, :, :to], mask[begin:end, :to], scale))
    return found[0] if len(found) == 1 else torch.cat(found)


def _band(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    rows, kv_heads, group, width = q.shape
    high, reach = tall(group), keys.shape[1]
    asked = q.view(rows, kv_heads, -1, high, width).transpose(0, 1).reshape(kv_heads, -1, high, width)
    seen = mask.unsqueeze(1).expand(rows, group // high, reach).reshape(1, -1, 1, reach)
    shared = (kv_heads, asked.shape[1], reach, width)
    k, v = (one.unsqueeze(1).expand(shared) for one in (keys, values))
    found = F.scaled_dot_product_attention(asked, k, v, attn_mask=seen, scale=scale)
    return found.view(kv_heads, rows, group, width).transpose(0, 1).reshape(rows, kv_heads * group, width)


def attend_places(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """A row of each place: `q` [places, kv_heads, group, head_dim] over `keys`, `values` [places, kv_heads, room, head_dim].

    `mask` [places, 1, room]; result [places, kv_heads * group, head_dim].
    """
    places, kv_heads, group, width = q.shape
    high, room = tall(group), keys.shape[2]
    seen = None if mask is None else mask.unsqueeze(1)
    if high < group:
        q = q.reshape(places * kv_heads, -1, high, width)
        k, v = (one.reshape(places * kv_heads, 1, room, width).expand(-1, group // high, -1, -1) for one in (keys, values))
        seen = None if seen is None else seen.expand(places, kv_heads, 1, room).reshape(-1, 1, 1, room)
    else:
        k, v = keys, values
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).view(places, kv_heads * group, width)
