"""The lean step is compared with the stage it was made from before it is used.

The same made-up tokens or hidden states through both: some positions at once, then one by one, then three sequences
together as against one alone. Rows are compared one by one: a fault in one position hardly shows in a mean. What is
compared is what the layers added to the hidden state (or the logits). Some layers tear apart made-up rows that differ by a rounding
(a row that is just on the brink of becoming the one all others look at): the stage is given its own input with each number a rounding off,
too, and where it itself moves, the other may move a few times as much. Rejected: a greater allowance for all rows (a wrong scale hides
in it). Windows and tables that only differ far beyond
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
_TIMES, _MOST = 3.0, 0.5
"""How much more than the stage itself after a rounding, and the most of all: what is wrong shows in calm rows."""
_SHAKES = 2


def check(stage: Stage, runner: ModelRunner) -> str:
    """Says what was compared; `Unlike` says what differs."""
    given = _Given(stage)
    wanted = given.all_by_stage(given.rows)
    allowed = given.allowed(wanted)
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
    worst = _judge(given, allowed, list(enumerate(zip(alone, wanted, strict=True))), "")
    late = range(len(wanted) - (POSITIONS - AHEAD), len(wanted))
    pairs = [(number, (row, wanted[number])) for number, rows in zip(late, together, strict=True) for row in rows]
    _judge(given, allowed, pairs, " with several sequences together")
    return f"as transformers gives at {POSITIONS} positions, within {worst:.1g}"


def _judge(given: _Given, allowed: list[float], pairs: list[tuple[int, tuple[torch.Tensor, torch.Tensor]]], where: str) -> float:
    """How far the worst is apart; `Unlike` where that is too far."""
    apart = [(given.apart(number, one, other), allowed[number]) for number, (one, other) in pairs]
    for much, most in apart:
        if not much <= most:
            raise Unlike(f"it gave other numbers than transformers{where} ({much:.2g} apart)")
    return max(much for much, _most in apart)


class _Given:
    """The same input for both sides."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._random = torch.Generator().manual_seed(3)
        self.rows = torch.randn(POSITIONS, stage.hidden, generator=self._random).to(stage.dtype)
        self._words = [(7 * position * position + 11 * position + 1) % stage.vocabulary for position in range(POSITIONS)]

    def all_by_stage(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states of each position, or the logits of the last one of each cut."""
        cache: Any = self._stage.new_cache()
        first = self._by_stage(cache, rows, 0, AHEAD)
        return [*first, *(row for at in range(AHEAD, POSITIONS) for row in self._by_stage(cache, rows, at, 1))]

    def _by_stage(self, cache: Any, rows: torch.Tensor, at: int, count: int) -> list[torch.Tensor]:
        stage = self._stage
        stage.tell_position(cache, at)
        if stage.first:
            out = stage.forward(cache, None, rows[at : at + count])
        else:
            out = stage.forward(cache, torch.tensor(self._words[at : at + count]), None)
        return [out] if stage.last else list(out)

    def allowed(self, wanted: list[torch.Tensor]) -> list[float]:
        """How far each row may be apart."""
        moved = [0.0] * len(wanted)
        if self._stage.first:
            for _ in range(_SHAKES):
                noise = torch.randn(self.rows.shape, generator=self._random) * torch.finfo(self._stage.dtype).eps / 2
                shaken = self.all_by_stage((self.rows.float() * (1 + noise)).to(self._stage.dtype))
                moved = [
                    max(most, self.apart(at, *pair))
                    for at, (most, pair) in enumerate(zip(moved, zip(shaken, wanted, strict=True), strict=True))
                ]
        return [min(_MOST, max(_APART[self._stage.dtype], _TIMES * much)) for much in moved]

    def by_runner(self, runner: ModelRunner, slots: list[int], at: int, count: int) -> list[torch.Tensor]:
        words = None if self._stage.first else self._words[at : at + count]
        rows = [Row(slot, at, count, words, 1) for slot in slots]
        hidden = self.rows[at : at + count].repeat(len(slots), 1) if self._stage.first else None
        return list(runner.run(rows, hidden))

    def apart(self, number: int, one: torch.Tensor, other: torch.Tensor) -> float:
        stage = self._stage
        base = self.rows[number].float() if stage.first and not stage.last else torch.zeros(())
        added = (other.float() - base).norm().clamp_min(1e-12)
        return float((one.float() - other.float()).norm() / added)
