"""What a stage takes of memory, by formula: the same numbers for the planner (which never loads torch) and for the worker.

weights      the groups' bytes at the session's precision; tied weights lie once, also at a stage that embeds and has the head
KV           2 * kv_heads * head_dim * tokens * width for every layer of the stage
activations  a prefill of up to 256 rows through one layer (about ten hidden widths wide), and logits in fp32
"""

from __future__ import annotations

from collections.abc import Sequence

ROWS = 256
_WIDTHS = 10
DTYPE_WIDTH = {"bf16": 2, "fp32": 4}


def stage_bytes(
    layer_bytes: Sequence[int],
    embed: int,
    head: int,
    tied: bool,
    first: int,
    end: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    tokens_max: int,
    dtype_width: int,
    hidden: int,
    vocabulary: int,
) -> int:
    """Bytes that layers [first, end) of `layers` take with room for `tokens_max` positions.

    `layer_bytes` one per layer of the model, `embed`, `head` bytes of those groups, all at the precision that is run.
    """
    weights = weight_bytes(layer_bytes, embed, head, tied, first, end, layers)
    kv = kv_bytes(end - first, kv_heads, head_dim, tokens_max, dtype_width)
    return weights + kv + activation_bytes(hidden, vocabulary if end == layers else 0, dtype_width)


def weight_bytes(layer_bytes: Sequence[int], embed: int, head: int, tied: bool, first: int, end: int, layers: int) -> int:
    total = sum(layer_bytes[first:end])
    if first == 0 or (tied and end == layers):
        total += embed
    return total + (head if end == layers else 0)


def kv_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, dtype_width: int) -> int:
    return 2 * layers * kv_heads * head_dim * tokens * dtype_width


def activation_bytes(hidden: int, vocabulary: int, dtype_width: int) -> int:
    """`vocabulary` 0 for a stage without head."""
    return ROWS * hidden * _WIDTHS * dtype_width + vocabulary * 8
