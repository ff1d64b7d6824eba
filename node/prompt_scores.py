"""Logarithms of a prompt's own tokens, as they travel from the last stage to the entry, and as the entry believes them."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from protocol.errors import PeerFault
from protocol.messages import StepHead, TokenLogprob

_PAIR = struct.Struct("<if")


def packed_scores(rows: Sequence[Sequence[TokenLogprob]]) -> tuple[list[int], bytes]:
    """`shape` and raw bytes of a frame of scores. Rows are of one width: a token's own logarithm, then the likeliest."""
    raw = b"".join(_PAIR.pack(one.token, one.logprob) for row in rows for one in row)
    return [len(rows), len(rows[0])], raw


def read_scores(
    head: StepHead, raw: memoryview, tokens: Sequence[int], width: int, vocabulary: int | None
) -> dict[int, list[TokenLogprob]]:
    """By the token's place in `tokens`; `PeerFault` for scores of other tokens than the prompt's, or that aren't logarithms."""
    count, wide = head.shape or [0, 0]
    if wide != width or head.position < 1 or head.position + count > len(tokens):
        raise PeerFault(f"scores of {count} tokens from {head.position} on, {wide} wide: the prompt has {len(tokens)}, {width} were asked")
    pairs = [TokenLogprob(token, logprob) for token, logprob in _PAIR.iter_unpack(raw)]
    for one in pairs:
        if one.token < 0 or (vocabulary is not None and one.token >= vocabulary) or not -math.inf < one.logprob <= 1e-3:
            raise PeerFault(f"a score of {one.logprob} for token {one.token}")
    found = {head.position + row: pairs[row * wide : (row + 1) * wide] for row in range(count)}
    if any(row[0].token != tokens[place] for place, row in found.items()):
        raise PeerFault("scores of other tokens than the prompt's")
    return found
