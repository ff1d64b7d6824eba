"""One pass of a stage over many sequences: what every engine offers, and what the scheduler asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(slots=True)
class Row:
    """One sequence's share of a pass.

    `slot` its place in the pool, `position` of its first new token, `count` of new tokens, `tokens` (first stage) or rows of `hidden`;
    `logits` how many of its last positions need logits (0: none, drafts need more).
    """

    slot: int
    position: int
    count: int
    tokens: list[int] | None
    logits: int


class ModelRunner(Protocol):
    """Runs layers [first, end) for many sequences in one pass. One implementation per engine: lean, transformers (fallback), llama.

    `token_bytes` of KV for one position over these layers, `fixed_bytes` for each sequence; `batched` False: the rows of a pass are
    computed one after another.
    """

    first: int
    end: int
    layers: int
    hidden: int
    vocabulary: int
    dtype: torch.dtype
    precision: str
    token_bytes: int
    fixed_bytes: int
    weight_bytes: int
    batched: bool

    def open(self, slots: int, positions: int) -> None:
        """Makes or grows room: `slots` sequences; length buckets are the runner's own affair."""

    def release(self, slot: int) -> None: ...

    def crop(self, slot: int, position: int) -> None:
        """Drops KV at and beyond `position`; `Conflict` if it can't go back."""

    def run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        """`hidden` [sum(count), hidden] in row order for stages that don't embed; gives logits [sum(logits), vocabulary] from the last
        stage, else hidden states [sum(count), hidden]."""
