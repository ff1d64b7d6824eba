"""What a stage takes of memory, by formula: the same numbers for the planner (which never loads torch) and for the worker.

weights      the groups' bytes at what the precision stores of each (`WIDTHS`); tied weights lie once, also at a stage that embeds and
             has the head, except where the head is stored in a form of its own: in 8 bits, or packed where it is small
KV           2 * kv_heads * head_dim * tokens * width for every layer of the stage
activations  a pass of up to 256 waiting tokens and 256 positions of prompts through one layer (about ten hidden widths wide); the
             pass's logits, as many rows as `logit_rows` lets in; and what choosing tokens from a few of them at a time takes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the command line asks for the precisions' names alone, and loads nothing for them
    from runtime.interface import TensorPlace

ROWS = 256
"""Sequences that are in a pass at most for their next token."""
CUT = 256
"""Positions of prompts in a pass."""
_WIDTHS = 10
LOGITS = 32 * 1024 * 1024
"""Bytes of a pass's logits in fp32 beyond which it takes fewer sequences: at so many the weights are long read often enough."""
FEWEST = 48
"""Rows of logits that a pass may always have: more than a token with the most guesses and an audit beside it need."""
CHOSEN = 16
"""Rows from which tokens are chosen at once."""
_SCORES, _DRAWN = 8, 64
"""Bytes a token of the vocabulary: of each of those rows (side by side, and as fp32 scores), and of the one that is being drawn from."""
SMALL_HEAD = 128 * 1024 * 1024
"""Bytes up to which a bf16 head that is the embedding too is packed beside it, for speed."""


class Widths(NamedTuple):
    """Bytes a weight of the layers' matrices, of the head's, of everything else; and of what runs through: KV, hidden states."""

    matrix: float
    head: float
    rest: int
    dtype: int


WIDTHS = {
    "bf16": Widths(2, 2, 2, 2),
    "fp32": Widths(4, 4, 4, 4),
    "int8": Widths(1.01, 1.01, 2, 2),
    "int4": Widths(0.625, 1.01, 2, 2),
    "q8_0": Widths(1.0625, 1.0625, 2, 4),
    "q4_1": Widths(0.625, 1.0625, 2, 4),
}
"""By precision. int8 has four bytes a row beside the numbers, int4 four for every 32 of them, q8_0 two and q4_1 four for every 32, which
llama.cpp runs: it hands on fp32; keys and values take two bytes, but room for them in lengths that double."""
DTYPE_WIDTH = {precision: widths.dtype for precision, widths in WIDTHS.items()}
TRAVELS = {precision: "fp32" if widths.dtype == 4 else "bf16" for precision, widths in WIDTHS.items()}
"""In what a session's hidden states go from stage to stage, by its precision."""
STORED_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


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
    tied_head: int | None = None,
) -> int:
    """Bytes that layers [first, end) of `layers` take with room for `tokens_max` positions.

    `layer_bytes` one per layer of the model, `embed`, `head` bytes of those groups, all at the precision that is run.
    """
    weights = weight_bytes(layer_bytes, embed, head, tied, first, end, layers, tied_head)
    kv = kv_bytes(end - first, kv_heads, head_dim, tokens_max, dtype_width)
    return weights + kv + activation_bytes(hidden, vocabulary if end == layers else 0, dtype_width)


def weight_bytes(
    layer_bytes: Sequence[int], embed: int, head: int, tied: bool, first: int, end: int, layers: int, tied_head: int | None = None
) -> int:
    """`tied_head`: bytes of a head made of the embedding, None where it is the embedding itself."""
    total = sum(layer_bytes[first:end]) + (embed if first == 0 else 0)
    if end == layers:
        total += head
        if tied:
            total += tied_head if tied_head is not None else (embed if first else 0)
    return total


def tied_head_bytes(embed: int, precision: str) -> int | None:
    """What a head made of an embedding of `embed` bytes takes beside it."""
    widths = WIDTHS[precision]
    if widths.head != widths.rest:
        return int(embed * widths.head / widths.rest)
    return embed if precision == "bf16" and embed <= SMALL_HEAD else None


def held_bytes(places: Sequence[TensorPlace], precision: str, first: bool, last: bool) -> int:
    """Weights that a stage of these tensors holds: `first` embeds, `last` has the head, its own or one made of the embedding."""
    widths = WIDTHS[precision]
    total, embed, own_head = 0.0, 0, False
    for place in places:
        count = max(place.length, 0) / STORED_WIDTH.get(place.dtype, widths.rest)
        embeds = "embed" in place.name or "wte" in place.name
        heads = "lm_head" in place.name
        own_head |= heads
        if embeds:
            embed += int(count * widths.rest)
        else:
            total += count * (widths.head if heads else widths.matrix if len(place.shape) == 2 else widths.rest)
    if first:
        total += embed
    if last and not own_head:
        tied = tied_head_bytes(embed, precision)
        total += tied if tied is not None else (0 if first else embed)
    return int(total)


def kv_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, dtype_width: int) -> int:
    return 2 * layers * kv_heads * head_dim * tokens * dtype_width


def activation_bytes(hidden: int, vocabulary: int, dtype_width: int) -> int:
    """`vocabulary` 0 for a stage without head."""
    logits = vocabulary * (4 * logit_rows(vocabulary) + choice_bytes(1)) if vocabulary else 0
    return (ROWS + CUT) * hidden * _WIDTHS * dtype_width + logits


def logit_rows(vocabulary: int) -> int:
    """Rows of logits in one pass at most, whatever their dtype: some runners give fp32 at any precision."""
    return max(FEWEST, min(ROWS, LOGITS // (4 * max(vocabulary, 1))))


def choice_bytes(vocabulary: int) -> int:
    """What `sampler.choose` takes beside the logits, however many rows there are."""
    return vocabulary * (CHOSEN * _SCORES + _DRAWN)
