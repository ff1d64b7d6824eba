"""A runner whose hidden states go in and out in fp32, whatever it computes in: in a session at a precision of llama.cpp's, whose stages
hand on all they have, torch stands in for a stage."""

from __future__ import annotations

import torch

from runtime.model_runner import ModelRunner, Row


class Widened:
    """Implements `ModelRunner` over another one, in whose place it is used."""

    def __init__(self, inner: ModelRunner) -> None:
        self.inner = inner
        self.first, self.end, self.layers = inner.first, inner.end, inner.layers
        self.hidden, self.vocabulary, self.precision = inner.hidden, inner.vocabulary, inner.precision
        self.dtype = torch.float32
        self.token_bytes, self.fixed_bytes, self.weight_bytes = inner.token_bytes, inner.fixed_bytes, inner.weight_bytes
        self.batched, self.goes_back = inner.batched, bool(getattr(inner, "goes_back", True))
        self.keep_tails, self.tails = False, list[torch.Tensor]()

    def open(self, slots: int, positions: int) -> None:
        self.inner.open(slots, positions)

    def release(self, slot: int) -> None:
        self.inner.release(slot)

    def crop(self, slot: int, position: int) -> None:
        self.inner.crop(slot, position)

    def run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        self.inner.keep_tails = self.keep_tails
        out = self.inner.run(rows, None if hidden is None else hidden.to(self.inner.dtype))
        self.tails = [tail.float() for tail in self.inner.tails]
        return out if self.end == self.layers else out.float()  # logits may be of either kind, and are many
