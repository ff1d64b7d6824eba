"""An audit's step through a last stage: rows run as ever, each row's logits held against the token that was given.

Few rows at a time: the logits of a whole cut over a large vocabulary would be more than a stage reserves.
"""

from __future__ import annotations

from typing import Any

import torch

from protocol.errors import BadInput
from protocol.messages import Sampling
from runtime.interface import UNCHECKED
from runtime.stage import Stage
from runtime.token_gap import token_gap

ROWS = 16


def check_rows(
    stage: Stage,
    cache: Any,
    tokens: torch.Tensor | None,
    hidden: torch.Tensor | None,
    position: int,
    given: list[int],
    sampling: Sampling,
    seed: int,
) -> tuple[torch.Tensor, list[float]]:
    """Logits [vocabulary] of the last row, and for each row the gap of the token `given` for its next position, or UNCHECKED."""
    rows = tokens if tokens is not None else hidden
    assert rows is not None
    if len(given) != len(rows) or not all(UNCHECKED <= token < stage.vocabulary for token in given):
        raise BadInput(f"step: {len(rows)} rows to check against {len(given)} tokens, each in 0..{stage.vocabulary - 1}")
    gaps: list[float] = []
    logits, tails = torch.empty(0), list[torch.Tensor]()
    for begin in range(0, len(rows), ROWS):
        few = slice(begin, begin + ROWS)
        stage.tell_position(cache, position + begin)
        of_rows = stage.forward_rows(cache, tokens[few] if tokens is not None else None, hidden[few] if hidden is not None else None)
        for offset, (row, token) in enumerate(zip(of_rows, given[few], strict=True)):
            at = position + begin + offset + 1
            gaps.append(UNCHECKED if token == UNCHECKED else token_gap(row, sampling, seed, at, token))
        logits = of_rows[-1]
        if stage.tail is not None:
            tails.append(stage.tail)
    stage.tail = torch.cat(tails) if tails else None
    return logits, gaps
