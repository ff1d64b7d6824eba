"""Any architecture behind the runner's interface: a transformers stage with a cache for each slot, one row after another.

The reference, and what runs whatever has no faster way. Rows aren't computed together: caches of different lengths and classes have no
common batch, and one after another each row's result is the same whoever else is in the pass.
"""

from __future__ import annotations

from typing import Any

import torch

from protocol.errors import Conflict
from runtime import transformers_names as names
from runtime.model_runner import Row
from runtime.stage import Stage

_WORDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class StageRunner:
    """Implements `ModelRunner`."""

    batched = False

    def __init__(self, stage: Stage, weight_bytes: int = 0) -> None:
        self.stage = stage
        self.first, self.end, self.layers = stage.first, stage.end, stage.layers
        self.hidden, self.vocabulary = stage.hidden, stage.vocabulary
        self.dtype, self.precision = stage.dtype, _WORDS[stage.dtype]
        self.token_bytes, self.fixed_bytes = stage.token_bytes, stage.fixed_bytes
        self.weight_bytes = weight_bytes
        self.goes_back = not any(names.forgets(slot) for slot in stage.local_slots(stage.new_cache()))
        self.keep_tails, self.tails = False, list[torch.Tensor]()
        self._caches: dict[int, Any] = {}
        self._lengths: dict[int, int] = {}

    def open(self, slots: int, positions: int) -> None:
        """Caches grow as they are written."""

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)
        self._lengths.pop(slot, None)

    def crop(self, slot: int, position: int) -> None:
        dropped = self._lengths.get(slot, 0) - position
        if position == 0:
            self.release(slot)
        if position == 0 or dropped <= 0:
            return
        try:
            for one in self.stage.local_slots(self._caches[slot]):
                names.crop_slot(one, dropped)
        except RuntimeError as error:
            self.release(slot)
            raise Conflict("this model's memory can't go back", hint="replay the session from position 0") from error
        self._lengths[slot] = position

    def run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        outs, at = [], 0
        self.tails = []
        for row in rows:
            given = None if hidden is None else hidden[at : at + row.count]
            outs.append(self._row(row, given))
            at += row.count
        return torch.cat(outs)

    def _row(self, row: Row, hidden: torch.Tensor | None) -> torch.Tensor:
        if row.position == 0:
            self._caches[row.slot] = self.stage.new_cache()
        cache = self._caches[row.slot]
        tokens = None if row.tokens is None else torch.tensor(row.tokens, dtype=torch.long)
        self.stage.tell_position(cache, row.position)
        out = self.stage.forward_rows(cache, tokens, hidden, max(row.logits, 1))
        self._lengths[row.slot] = row.position + row.count
        if self.keep_tails and self.stage.tail is not None:
            self.tails.append(self.stage.tail.cpu())
        return out if not self.stage.last else out[len(out) - row.logits :]
