"""What the engine asks of whatever computes: many sequences' shares in one pass, over slots that keep their past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch


@dataclass(slots=True)
class Row:
    """One sequence's share of a pass: `slot` its place in the pool, `position` of its first new token, `count` of new tokens,
    `tokens` (first stage) or rows of `hidden`; `logits` how many of its last positions need logits (0: none, drafts need more)."""

    slot: int
    position: int
    count: int
    tokens: list[int] | None
    logits: int


class ModelRunner(Protocol):
    """Runs layers [first, end) for many sequences in one pass. One implementation per engine: lean, transformers (fallback), llama."""

    first: int
    end: int
    layers: int
    hidden: int
    vocabulary: int
    dtype: torch.dtype
    precision: str
    token_bytes: int
    """KV bytes of one position over these layers."""
    fixed_bytes: int
    """Per sequence."""
    weight_bytes: int
    batched: bool
    """False: rows of a pass are computed one after another (fallback)."""

    keep_tails: bool
    """Whether a last stage keeps `tails` of its runs: each row's [count, hidden] before norm and head. Set from outside."""
    tails: list[torch.Tensor]
    """Empty where they aren't known."""

    def open(self, slots: int, positions: int) -> None:
        """Makes or grows room: `slots` sequences; length buckets are the runner's own affair."""

    def release(self, slot: int) -> None:
        """Forgets what a slot holds."""

    def crop(self, slot: int, position: int) -> None:
        """Drops what lies at and beyond `position`; raises `Conflict` if it can't go back."""

    def run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        """`hidden` [sum(count), hidden] in row order for stages that don't embed; logits fp32 or bf16 [sum(logits), vocabulary] from the
        last stage, else hidden [sum(count), hidden]."""


@dataclass(slots=True)
class OneRow:
    """What a row came to, good until the next pass: memory that stays, as torch, numpy and bytes see it."""

    rows: torch.Tensor
    """[1, hidden] or [1, vocabulary]"""
    array: np.ndarray[Any, Any]
    """The same, of hidden states their bytes."""
    raw: memoryview
    finite: bool = False
    """Of hidden states: all are numbers."""

    @classmethod
    def make(cls, width: int, dtype: torch.dtype) -> OneRow:
        rows = torch.empty(1, width, dtype=dtype)
        array = rows.numpy() if dtype == torch.float32 else rows.view(torch.uint8).numpy()
        return cls(rows, array, memoryview(array).cast("B"))


@runtime_checkable
class Alone(Protocol):
    """Of a runner that computes one row by itself with less ado.

    A token of a pipeline comes when the processor's caches hold a stage's weights: each call of torch costs ten microseconds then.
    """

    def run_one(self, row: Row, hidden: torch.Tensor | None) -> OneRow:
        """As `run` for a single position, to the same bits."""


@runtime_checkable
class Reserving(Protocol):
    """Of a runner whose memory for sequences comes in greater pieces than they need: what it really takes is charged."""

    @property
    def reserved_bytes(self) -> int:
        """Taken for keys and values, whether sequences lie there or not."""

    scratch_each: int
    """Bytes that one more piece has to compute in."""

    @property
    def scratch(self) -> list[int]:
        """The same of each piece there is."""

    def place_bytes(self, positions: int) -> int:
        """Of `reserved_bytes`, what one sequence of up to `positions` has."""

    def bytes_to_seat(self, positions: int) -> int:
        """Keys and values that `seat` takes at its height beyond what is taken now."""

    def seat(self, slot: int, positions: int) -> None:
        """A place for the slot's sequence in which it can reach `positions`."""

    def give_back(self) -> None:
        """Lets go what no sequence lies in."""
