"""A stage is tried before it is used: what no rule can promise for every class is measured on the stage itself.

With made-up hidden states (or token ids) of a few positions, in this order:

1. every weight that the forward calls is there, and the layers return what the placeholders return;
2. each layer of the stage runs once, in order, the first on exactly what was received, and what is sent on is exactly what
   the last gave: a class that does something between layers would do it twice at a cut;
3. nothing but the hidden state comes from before: other embeddings beside the same hidden state, and other results of the
   modules whose weights are elsewhere, change no bit (classes that give every layer the embedding again can't be cut), and
   no layer hands a second tensor to the next;
4. the cache holds the past: a few positions at once and then one by one end where all at once end, within rounding;
5. shapes are right and all numbers are numbers.

Rejected: the whole model against itself cut (needs the whole model), comparing with a tiny model of the same config (a
config can't be made small without knowing its class). Five passes of at most eight positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from protocol.errors import BadInput, MfError
from runtime import transformers_names as names
from runtime.sliced import Sliced, whole
from runtime.stage import Stage

POSITIONS = 8
AHEAD = 6
_TUPLES = (0, 1, 2, 3)
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Share of what the layers added by which all at once and one by one may differ."""
_FORGETFUL = {torch.float32: 0.05, torch.bfloat16: 0.25}
"""Beyond that: share of the difference that no memory at all makes, from which the cache counts as wrong."""


def self_test(stage: Stage) -> str:
    """Says what was checked; `BadInput` says what is wrong."""
    return whole(self_testing(stage))


def self_testing(stage: Stage) -> Sliced[str]:
    """As `self_test`, a pass or a few at a time."""
    try:
        with missing_named(stage.model):
            _learn_return_kind(stage)
            yield
            trace, out = _traced(stage)
            _check_output(stage, out, POSITIONS)
            yield
            if stage.outside:
                _check_cut(stage, trace, out)
                yield
            _check_memory(stage, out)
    except MfError:
        raise
    except Exception as error:  # boundary: whatever a foreign forward raises means that it can't be run here
        raise _cannot(stage, str(error)[:300] or type(error).__name__) from error
    cut = ", cut clean" if stage.outside else ""
    return f"weights there and finite{cut}, {AHEAD} positions and {POSITIONS - AHEAD} one by one as {POSITIONS} at once"


def _cannot(stage: Stage, why: str) -> BadInput:
    hint = "run this model whole" if stage.outside else None
    return BadInput(f"{type(stage.model).__name__} can't run layers {stage.first}..{stage.end}: {why}", hint=hint)


@contextmanager
def missing_named(model: nn.Module) -> Iterator[None]:
    """A module that runs without one of its weights is refused by that weight's name."""
    hooks: list[Any] = []
    for path, module in model.named_modules():
        for leaf, held in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if held.is_meta:
                hooks.append(module.register_forward_pre_hook(_refuser(f"{path}.{leaf}")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuser(name: str) -> Any:
    def refuse(_module: nn.Module, _args: Any) -> None:
        raise BadInput(f"tensor {name!r} is needed here and wasn't given")

    return refuse


class _Trace:
    """What went into and came out of the stage's own layers in one pass."""

    def __init__(self, marks: list[torch.Tensor] | None = None) -> None:
        """`marks` is what the placeholder before the first layer returns beside the hidden state."""
        self.marks = marks or []
        self.calls: list[int] = []
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.beside: list[list[torch.Tensor]] = []
        self.handed_on: int | None = None
        self.tuple_size = 0

    def enter(self, index: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.calls.append(index)
        self.inputs.append(args[0] if args else named["hidden_states"])
        before = self.beside[-1] if self.beside else self.marks
        if any(given is left for given in (*args[1:], *named.values()) for left in before):
            self.handed_on = index

    def leave(self, out: Any) -> None:
        parts = list(out) if isinstance(out, tuple | list) else [out]
        self.tuple_size = len(out) if isinstance(out, tuple) else 0
        self.outputs.append(parts[0])
        self.beside.append([part for part in parts[1:] if part is not None])


@contextmanager
def _watched(stage: Stage, trace: _Trace) -> Iterator[None]:
    hooks: list[Any] = []
    for index, layer in enumerate(stage.own_layers(), stage.first):
        hooks.append(layer.register_forward_pre_hook(_entering(trace, index), with_kwargs=True))
        hooks.append(layer.register_forward_hook(lambda _module, _args, out: trace.leave(out)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entering(trace: _Trace, index: int) -> Any:
    return lambda _module, args, named: trace.enter(index, args, named)


def _learn_return_kind(stage: Stage) -> None:
    """Placeholders must return what the class's layers return; a wrong guess mostly raises, so it is found by trying."""
    if not stage.outside:
        return
    fault: Exception | None = None
    sizes = list(_TUPLES)
    while sizes:
        size = sizes.pop(0)
        _return_tuples(stage, size)
        trace = _Trace()
        try:
            with _watched(stage, trace):
                _given(stage, stage.new_cache(), 0, AHEAD)
        except MfError:
            raise
        except Exception as error:  # boundary: a foreign forward with placeholders of the wrong kind
            fault = fault or error
        if trace.outputs and trace.tuple_size == size and len(trace.outputs) >= stage.end - stage.first:
            return
        if trace.outputs and trace.tuple_size in sizes:
            sizes = [trace.tuple_size]
    raise _cannot(stage, str(fault)[:300] if fault else "its layers aren't called")


def _return_tuples(stage: Stage, size: int) -> None:
    for outside in stage.outside.values():
        outside.tuple_size = size


def _rows(stage: Stage) -> torch.Tensor:
    return _noise(stage.hidden, 1).to(stage.dtype)


def _noise(width: int, seed: int) -> torch.Tensor:
    return torch.randn(POSITIONS, width, generator=torch.Generator().manual_seed(seed))


def _tokens(stage: Stage) -> torch.Tensor:
    return torch.arange(POSITIONS) * 7 % stage.vocabulary


def _given(stage: Stage, cache: Any, position: int, count: int, taken_from: int | None = None) -> torch.Tensor:
    """One pass at `position` of the made-up input of that position, or of `taken_from`."""
    stage.tell_position(cache, position)
    start = position if taken_from is None else taken_from
    if stage.first == 0:
        return stage.forward(cache, _tokens(stage)[start : start + count], None)
    return stage.forward(cache, None, _rows(stage)[start : start + count])


def _traced(stage: Stage) -> tuple[_Trace, torch.Tensor]:
    entry = stage.entry
    trace = _Trace([torch.empty(0) for _ in range(1, entry.tuple_size)] if entry is not None else None)
    if entry is not None:
        entry.beside = trace.marks
    try:
        with _watched(stage, trace):
            out = _given(stage, stage.new_cache(), 0, POSITIONS)
    finally:
        if entry is not None:
            entry.beside = None
    return trace, out


def _check_output(stage: Stage, out: torch.Tensor, count: int) -> None:
    wanted = (stage.vocabulary,) if stage.last else (count, stage.hidden)
    if tuple(out.shape) != wanted:
        raise _cannot(stage, f"it gave shape {list(out.shape)}, {list(wanted)} is right")
    if out.is_meta or not bool(torch.isfinite(out).all()):
        raise BadInput(f"self-test: layers {stage.first}..{stage.end} gave values that are not numbers")


def _check_cut(stage: Stage, trace: _Trace, out: torch.Tensor) -> None:
    if trace.calls != list(range(stage.first, stage.end)):
        raise _cannot(stage, f"its layers run in the order {trace.calls[:12]}")
    if trace.handed_on is not None:
        raise _cannot(stage, f"layer {trace.handed_on} is handed more than the hidden state by the one before")
    if not stage.last and not torch.equal(trace.outputs[-1][0].flatten(1).cpu(), out):
        raise _cannot(stage, "something is done to the hidden state between layers")
    if stage.first == 0:
        return
    if not torch.equal(trace.inputs[0][0].flatten(1).cpu(), _rows(stage)):
        raise _cannot(stage, "something is done to the hidden state between layers")
    cache = stage.new_cache()
    stage.tell_position(cache, 0)
    beside = _noise(stage.embedded, 2).to(stage.dtype)
    if not torch.equal(stage.forward_beside(cache, _rows(stage), beside, 0.5), out):
        raise _cannot(stage, "its layers are given what comes before them beside the hidden state")


def _check_memory(stage: Stage, at_once: torch.Tensor) -> None:
    cache = stage.new_cache()
    out = _given(stage, cache, 0, AHEAD)
    before = _held(stage, cache)
    for position in range(AHEAD, POSITIONS):
        out = _given(stage, cache, position, 1)
    stage.token_bytes = max(0, _held(stage, cache) - before) // (POSITIONS - AHEAD)
    stage.fixed_bytes = max(0, before - AHEAD * stage.token_bytes)
    wrong = _distance(stage, out, at_once)
    if wrong <= _ROUNDING[stage.dtype]:
        return
    alone = _distance(stage, _given(stage, stage.new_cache(), 0, 1, POSITIONS - 1), at_once)
    if wrong > _FORGETFUL[stage.dtype] * alone:
        raise _cannot(stage, f"its memory of earlier positions is not what all at once give ({wrong:.2g} apart)")


def _held(stage: Stage, cache: Any) -> int:
    return sum(names.slot_bytes(slot) for slot in stage.local_slots(cache))


def _distance(stage: Stage, one: torch.Tensor, other: torch.Tensor) -> float:
    """Of the last positions, as a share of what the layers added to the hidden state (or of the logits)."""
    given = _rows(stage)[-1] if stage.first and not stage.last else torch.zeros(())
    last = other if stage.last else other[-1]
    mine = one if stage.last else one[-1]
    added = (last.float() - given.float()).norm()
    return float((mine.float() - last.float()).norm() / added.clamp_min(1e-12))
