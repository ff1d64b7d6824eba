"""A runner where a stage is expected: one sequence at a time, each with a slot of its own."""

from __future__ import annotations

import weakref

import torch

from runtime.model_runner import ModelRunner, Row
from runtime.stage import Stage


class SlotCache:
    """A sequence's slot; given back when nothing refers to it any more."""

    def __init__(self, slot: int) -> None:
        self.slot, self.position = slot, 0


class LeanStage:
    """What `Sequence` asks of a stage, answered by `runner`."""

    def __init__(self, stage: Stage, runner: ModelRunner) -> None:
        self.first, self.end, self.layers = stage.first, stage.end, stage.layers
        self.hidden, self.vocabulary, self.dtype, self.config = stage.hidden, stage.vocabulary, stage.dtype, stage.config
        self.token_bytes, self.fixed_bytes = runner.token_bytes, runner.fixed_bytes
        self.runner = runner
        self._next = 0

    @property
    def last(self) -> bool:
        return self.end == self.layers

    def new_cache(self) -> SlotCache:
        cache = SlotCache(self._next)
        self._next += 1
        weakref.finalize(cache, self.runner.release, cache.slot)
        return cache

    def tell_position(self, cache: SlotCache, position: int) -> None:
        cache.position = position

    def crop(self, cache: SlotCache, position: int) -> None:
        self.runner.crop(cache.slot, position)

    def forward(self, cache: SlotCache, tokens: torch.Tensor | None, hidden: torch.Tensor | None) -> torch.Tensor:
        """As `Stage.forward`."""
        words = None if tokens is None else tokens.tolist()
        count = len(words) if words is not None else len(hidden) if hidden is not None else 0
        out = self.runner.run([Row(cache.slot, cache.position, count, words, 1)], hidden)
        return out[0] if self.last else out
