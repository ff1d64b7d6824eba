"""Logarithms of the tokens that a prompt goes on with, from the logits of its own rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocol.messages import TokenLogprob
from runtime.interface import UNCHECKED


def scores(logits: torch.Tensor, tokens: Sequence[int], likeliest: int) -> list[list[TokenLogprob]]:
    """For each row of logits [rows, vocabulary] the natural logarithm of its token, then of the `likeliest`; no list for UNCHECKED.

    Of the model's own distribution: neither bias, penalties, grammar nor temperature has a part in a prompt.
    """
    logs = torch.log_softmax(logits.to(torch.float32), -1)
    top = torch.topk(logs, min(likeliest, logs.shape[-1]), dim=-1)
    rows = zip(logs, tokens, top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        [TokenLogprob(token, float(row[token])), *(TokenLogprob(one, value) for one, value in zip(places, values, strict=True))]
        for row, token, places, values in rows
        if token != UNCHECKED
    ]
