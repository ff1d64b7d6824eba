"""Weights of 4 bits back out of the order that torch's packed kernel for the CPU keeps them in.

That kernel takes as long a row for a hundred rows as for four. From some fifty on a product in bf16 is faster, the weights made anew on
the way, where the processor has instructions for it (microseconds for 3072 x 576 on two Sapphire Rapids cores, 128 rows:
packed 2476, this way 962). The same stored bytes serve both.

The order isn't documented, it is read from what the kernel's packing makes: rows in blocks of 64 (32 without AVX-512); of a block, column
after column, a byte for each two rows, the one from the block's first half in its lower bits. `rows_in_block` tries and says which it is,
or that it is neither. Two bytes are cut at a time: torch shifts numbers of 16 bits in vectors, of 8 bits one by one.
"""

from __future__ import annotations

import functools

import torch

_LOWER = 0x0F0F


def unpacked(packed: torch.Tensor, scales: torch.Tensor, rows_block: int, out: torch.Tensor) -> torch.Tensor:
    """`packed` [rows, in / 2] and `scales` [in / group, rows, 2] to weights in bf16, transposed: `out` [in, rows], which is returned."""
    width, rows = out.shape
    blocks, groups = rows // rows_block, len(scales)
    both = packed.reshape(-1).view(torch.int16).view(blocks, width, rows_block // 4)
    halves = out.view(width, blocks, 2, rows_block // 2)
    for half, shifted in enumerate((both, both >> 4)):
        numbers = torch.bitwise_and(shifted, _LOWER).view(torch.int8).sub_(8)
        halves[:, :, half].copy_(numbers.transpose(0, 1))
    scale, zero = (scales[..., at].contiguous().unsqueeze(1) for at in (0, 1))
    grouped = out.view(groups, width // groups, rows)
    return torch.addcmul(zero, grouped, scale, out=grouped).view(width, rows)


@functools.cache
def rows_in_block() -> int | None:
    """Rows in a block of the packed order here; None: it is none that `unpacked` knows."""
    rows, width, group = 192, 64, 32
    given = torch.Generator().manual_seed(1)
    whole = torch.randint(0, 16, (rows, width), generator=given, dtype=torch.int32)
    scales = torch.tensor([1.0, 0.0]).bfloat16().expand(width // group, rows, 2)
    with torch.inference_mode(False):
        try:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
            if packed.dtype != torch.uint8 or packed.numel() != rows * width // 2:
                return None
            for tried in (64, 32):
                made = unpacked(packed, scales, tried, torch.empty(width, rows, dtype=torch.bfloat16))
                if torch.equal(made.t(), (whole - 8).bfloat16()):
                    return tried
        except RuntimeError:
            return None
    return None
