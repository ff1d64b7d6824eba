"""The lean step is compared with the stage it was made from before it is used.

The same made-up tokens or hidden states through both: some positions at once, then one by one, then three sequences
together as against one alone. Rows are compared one by one: a fault in one position hardly shows in a mean. What is
compared is what the layers added to the hidden state (or the logits).

Problem: some rows are torn apart by a rounding. A row on the brink of becoming the one that all others look at grows from 150 to
25,000 within a few layers; a cut through those layers shows it half-way, where the last bits decide how far it has come. SmolLM2's first
position behind layers 0..10 in int4: lean and transformers 0.11 apart, the other rows 0.01 to 0.02. Neither is wrong: from the same
stored weights in fp32, transformers' own bf16 is 0.12 away in that row, the lean step 0.02.

Choice: most rows of most stages are calm and have to be as near as `_APART`. Where one isn't, the stage itself is shaken: what it is given
and what each of its modules gives moves by half a bit of its dtype at random, as another order of adding up would move it. How far a row
then moves says how far any right way of computing it may be. Shaken, the row above moves by 0.11, its neighbours by 0.02; of all rows
of SmolLM2 in 1 to 4 stages at int4 and int8 the lean step was apart at most 1.6 times as much, mostly half as much. And half of all
rows must lie within what half of them moved by: a fault that is in every row has nowhere to hide where some rows allow much.

Rejected: a greater allowance for all rows (a wrong scale hides in it); shaking the input alone (a first stage's are words, and what is
torn apart in the middle shows less than it should); a cosine, or each channel by its own size (that row's few great channels are what
differs, and what a wrong kernel spoils as well); fp32 of the stored weights as the reference (right, but a second copy of the stage at
four bytes a weight when memory is tightest). Windows and tables that only differ far beyond the positions tried can't be seen here:
models are admitted by what their config says of those (`lean_shape.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from runtime.lean_shape import Unlike
from runtime.model_runner import ModelRunner, Row
from runtime.sliced import Sliced, whole
from runtime.stage import Stage

POSITIONS, AHEAD = 40, 37
_APART = {torch.float32: 2e-4, torch.bfloat16: 6e-2}
"""Share of what was added by which a row may differ: a few roundings a layer."""
_SLOTS = 3
_TIMES, _MOST = 3.0, 0.5
"""How much more than the shaken stage itself a row may be apart, and the most of all."""
_SHAKES = 4


def check(stage: Stage, runner: ModelRunner) -> str:
    """Says what was compared; `Unlike` says what differs."""
    return whole(checking(stage, runner))


def checking(stage: Stage, runner: ModelRunner) -> Sliced[str]:
    """As `check`, a pass or a few at a time."""
    given = _Given(stage)
    wanted = yield from given.all_by_stage(given.rows)
    alone = given.by_runner(runner, [0], 0, AHEAD)
    yield
    for at in range(AHEAD, POSITIONS):
        alone += given.by_runner(runner, [0], at, 1)
    runner.crop(0, AHEAD)
    given.by_runner(runner, list(range(1, _SLOTS)), 0, AHEAD)
    yield
    together = [given.by_runner(runner, list(range(_SLOTS)), at, 1) for at in range(AHEAD, POSITIONS)]
    for slot in range(_SLOTS):
        runner.release(slot)
    yield
    apart = [given.apart(number, *pair) for number, pair in enumerate(zip(alone, wanted, strict=True))]
    late = range(len(wanted) - (POSITIONS - AHEAD), len(wanted))
    crowd = [max(given.apart(number, row, wanted[number]) for row in rows) for number, rows in zip(late, together, strict=True)]
    yield from _judging(given, wanted, apart, crowd)
    return f"as transformers gives at {POSITIONS} positions, within {max(apart):.1g}"


def _judging(given: _Given, wanted: list[torch.Tensor], apart: list[float], crowd: list[float]) -> Sliced[None]:
    """`apart` of each row, `crowd` of the last ones with several sequences together; `Unlike` where that is too far."""
    calm = _APART[given.dtype]
    if all(much <= calm for much in [*apart, *crowd]):
        return
    moved, refused = [0.0] * len(wanted), Unlike("it wasn't tried")
    for _ in range(_SHAKES):
        moved = yield from given.moved_again(moved, wanted)
        try:
            _refuse_moved(moved, apart, crowd, calm)
        except Unlike as error:
            refused = error
        else:
            return  # more shaking would only allow more
    raise refused


def _refuse_moved(moved: list[float], apart: list[float], crowd: list[float], calm: float) -> None:
    allowed = [min(_MOST, max(calm, _TIMES * much)) for much in moved]
    _refuse_beyond(apart, allowed, "")
    _refuse_beyond(crowd, allowed[len(allowed) - len(crowd) :], " with several sequences together")
    _refuse_beyond([_half(apart)], [min(_MOST, max(calm, _half(moved)))], " in half of its rows")


def _refuse_beyond(apart: Sequence[float], allowed: Sequence[float], where: str) -> None:
    """What isn't a number is beyond everything."""
    for much, most in zip(apart, allowed, strict=True):
        if not much <= most:
            raise Unlike(f"it gave other numbers than transformers{where} ({much:.2g} apart, {most:.2g} allowed)")


def _half(apart: Sequence[float]) -> float:
    """What half of the rows are within."""
    return sorted(apart)[(len(apart) - 1) // 2]


class _Given:
    """The same input for both sides."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.dtype = stage.dtype
        self._random = torch.Generator().manual_seed(3)
        self.rows = torch.randn(POSITIONS, stage.hidden, generator=self._random).to(stage.dtype)
        self._words = [(7 * position * position + 11 * position + 1) % stage.vocabulary for position in range(POSITIONS)]

    def all_by_stage(self, rows: torch.Tensor) -> Sliced[list[torch.Tensor]]:
        """Hidden states of each position, or the logits of the last one of each cut."""
        cache: Any = self._stage.new_cache()
        found = self._by_stage(cache, rows, 0, AHEAD)
        yield
        for at in range(AHEAD, POSITIONS):
            found += self._by_stage(cache, rows, at, 1)
        yield
        return found

    def _by_stage(self, cache: Any, rows: torch.Tensor, at: int, count: int) -> list[torch.Tensor]:
        stage = self._stage
        stage.tell_position(cache, at)
        if stage.first:
            out = stage.forward(cache, None, rows[at : at + count])
        else:
            out = stage.forward(cache, torch.tensor(self._words[at : at + count]), None)
        return [out] if stage.last else list(out)

    def moved_again(self, before: list[float], wanted: list[torch.Tensor]) -> Sliced[list[float]]:
        """How far each row moves from `wanted` when the stage is shaken, or has moved `before`, whichever is more."""
        with self._shaken():
            again = yield from self.all_by_stage(self._shake(self.rows))
        return [max(much, self.apart(at, row, wanted[at])) for at, (much, row) in enumerate(zip(before, again, strict=True))]

    def _shake(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=self._random) * (torch.finfo(x.dtype).eps / 2)
        return (x.float() * (1 + noise).to(x.device)).to(x.dtype)

    @contextmanager
    def _shaken(self) -> Iterator[None]:
        """What each innermost module of the layers gives, and the embedding, moves by a rounding."""

        def hook(_module: Any, _given: Any, out: Any) -> Any:
            return self._shake(out) if isinstance(out, torch.Tensor) and out.is_floating_point() else out

        inner = [module for layer in self._stage.own_layers() for module in layer.modules() if not list(module.children())]
        words = [self._stage.model.get_input_embeddings()] if self._stage.first == 0 else []
        hooks = [module.register_forward_hook(hook) for module in [*words, *inner]]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()

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
