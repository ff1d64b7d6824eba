"""The lean step is compared with the stage it was made from before it is used.

The same made-up tokens or hidden states through both: some positions at once, then one by one, then three sequences
together as against one alone. Rows are compared one by one: a fault in one position hardly shows in a mean. What is
compared is what the layers added to the hidden state (or the logits). Windows and tables that only differ far beyond
the positions tried can't be seen here: models are admitted by what their config says of those (`lean_shape.py`).
"""

from __future__ import annotations

from typing import Any

import torch

from runtime.lean_shape import Unlike
from runtime.model_runner import ModelRunner, Row
from runtime.stage import Stage

POSITIONS, AHEAD = 40, 37
_APART = {torch.float32: 2e-4, torch.bfloat16: 6e-2}
"""Share of what was added by which a row may differ: a few roundings a layer."""
_SLOTS = 3


def check(stage: Stage, runner: ModelRunner) -> str:
    """Says what was compared; `Unlike` says what differs."""
    given = _Given(stage)
    wanted = [*given.by_stage(0, AHEAD), *(row for at in range(AHEAD, POSITIONS) for row in given.by_stage(at, 1))]
    for slot in range(_SLOTS):
        given.by_runner(runner, [slot], 0, AHEAD)
    alone = [
        *given.by_runner(runner, [0], 0, AHEAD),
        *(row for at in range(AHEAD, POSITIONS) for row in given.by_runner(runner, [0], at, 1)),
    ]
    runner.crop(0, AHEAD)
    together = [given.by_runner(runner, list(range(_SLOTS)), at, 1) for at in range(AHEAD, POSITIONS)]
    for slot in range(_SLOTS):
        runner.release(slot)
    worst = max(_apart(given, number, one, other) for number, (one, other) in enumerate(zip(alone, wanted, strict=True)))
    _judge(stage, worst, "")
    late = wanted[AHEAD:] if not stage.last else wanted[1:]
    pairs = [(number, row, late[number]) for number, rows in enumerate(together) for row in rows]
    _judge(stage, max(_apart(given, AHEAD + number, row, one) for number, row, one in pairs), " with several sequences together")
    return f"as transformers gives at {POSITIONS} positions, within {worst:.1g}"


def _judge(stage: Stage, apart: float, where: str) -> None:
    if not apart <= _APART[stage.dtype]:
        raise Unlike(f"it gave other numbers than transformers{where} ({apart:.2g} apart)")


class _Given:
    """The same input for both sides."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._cache: Any = stage.new_cache()
        noise = torch.randn(POSITIONS, stage.hidden, generator=torch.Generator().manual_seed(3))
        self.rows = noise.to(stage.dtype)
        self._words = [(7 * position * position + 11 * position + 1) % stage.vocabulary for position in range(POSITIONS)]

    def by_stage(self, at: int, count: int) -> list[torch.Tensor]:
        """Hidden states of each position, or the last one's logits."""
        stage = self._stage
        stage.tell_position(self._cache, at)
        if stage.first:
            out = stage.forward(self._cache, None, self.rows[at : at + count])
        else:
            out = stage.forward(self._cache, torch.tensor(self._words[at : at + count]), None)
        return [out] if stage.last else list(out)

    def by_runner(self, runner: ModelRunner, slots: list[int], at: int, count: int) -> list[torch.Tensor]:
        words = None if self._stage.first else self._words[at : at + count]
        rows = [Row(slot, at, count, words, 1) for slot in slots]
        hidden = self.rows[at : at + count].repeat(len(slots), 1) if self._stage.first else None
        return list(runner.run(rows, hidden))


def _apart(given: _Given, number: int, one: torch.Tensor, other: torch.Tensor) -> float:
    stage = given._stage
    base = given.rows[number].float() if stage.first and not stage.last else torch.zeros(())
    added = (other.float() - base).norm().clamp_min(1e-12)
    return float((one.float() - other.float()).norm() / added)
