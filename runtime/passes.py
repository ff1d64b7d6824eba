"""One pass of a runner over several sequences' shares: lay the rows out, compute, hand each its own."""

from __future__ import annotations

import time
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from protocol.errors import MfError
from runtime.interface import UNCHECKED
from runtime.model_runner import Alone, ModelRunner, Row
from runtime.prompt_scores import scores
from runtime.reply_state import agreeing
from runtime.sampler import Ask, Chosen, choose, greatest
from runtime.sequence import Job, Sequence
from runtime.token_gap import token_gap

_FEW = 4


@dataclass
class Part:
    """A sequence's `count` positions of a pass. Afterwards: the `job` if it's done, and what came out."""

    sequence: Sequence
    count: int
    job: Job | None = None
    hidden: torch.Tensor | bytes | None = None
    logits: torch.Tensor | None = None
    numbers: np.ndarray[Any, Any] | None = None
    """The logits once more, where numpy has them already."""
    chosen: list[Chosen] | None = None
    fault: MfError | None = None


def compute(runner: ModelRunner, parts: Listed[Part]) -> float:
    """Fills in the parts; the seconds it took. Raises whatever the runner raises."""
    began = time.monotonic()
    if len(parts) == 1 and (alone := parts[0].sequence.alone) is not None and parts[0].sequence.jobs[0].plain:
        return _compute_one(alone, parts[0], began)
    runner.keep_tails = any(part.sequence.jobs[0].tail for part in parts)
    laid = [part.sequence.row(part.count) for part in parts]
    rows = [row for row, _hidden in laid]
    given = [hidden for _row, hidden in laid if hidden is not None]
    out = runner.run(rows, torch.cat(given) if len(given) > 1 else given[0] if given else None)
    seconds, at = time.monotonic() - began, 0
    last = runner.end == runner.layers
    for number, (part, row) in enumerate(zip(parts, rows, strict=True)):
        size = row.logits if last else row.count
        job, piece = part.sequence.jobs[0], out[at : at + size]
        if last and job.check is not None:
            _check(part.sequence, job, piece)
        if last and job.score is not None:
            job.scored += scores(piece, job.score[job.computed : job.computed + row.count], part.sequence.state.sampling.logprobs or 0)
        if not last or (job.tail and runner.tails):
            job.outs.append(runner.tails[number] if last else piece)
        _hand(part, piece, began, seconds)
        at += size
    return seconds


def _compute_one(runner: Alone, part: Part, began: float) -> float:
    """The next token of one sequence, the commonest pass and the one that somebody waits for."""
    sequence, job = part.sequence, part.sequence.jobs[0]
    sampled = sequence.last and job.sample
    made = runner.run_one(Row(sequence.slot, job.position, 1, job.tokens, int(sampled)), job.hidden)
    job.began, job.seconds = began, time.monotonic() - began
    part.job = sequence.advance(1)
    if sampled:
        part.logits, part.numbers = made.rows, made.array
    elif not sequence.last:
        part.hidden, job.finite = bytes(made.raw), made.finite
    return job.seconds


def _hand(part: Part, out: torch.Tensor, began: float, seconds: float) -> None:
    job = part.sequence.jobs[0]
    job.began, job.seconds = job.began or began, job.seconds + seconds
    part.job = part.sequence.advance(part.count)
    if part.job is None:
        return
    if job.outs:
        part.hidden = torch.cat(job.outs) if len(job.outs) > 1 else job.outs[0]
    if part.sequence.last and job.sample:
        part.logits = out[-len(job.drafted) - 1 :]


def _check(sequence: Sequence, job: Job, logits: torch.Tensor) -> None:
    """How far the tokens that an audit names lie behind; where the reply so far matters it can't be said."""
    assert job.check is not None
    for row, token in zip(logits, job.check[job.computed :], strict=False):
        at = job.position + len(job.gaps) + 1
        known = token != UNCHECKED and not sequence.state.remembers
        job.gaps.append(token_gap(row, sequence.state.sampling, sequence.state.seed, at, token) if known else float(UNCHECKED))


def sample(parts: Listed[Part]) -> None:
    """Chooses tokens where logits came out, which counts as computing. Logits that aren't numbers, or a grammar that lets nothing in, are a
    part's own `fault`."""
    began = time.monotonic()
    _choose(parts)
    seconds = time.monotonic() - began
    for part in parts:
        if part.job is not None and part.chosen is not None:
            part.job.seconds += seconds


def _choose(parts: Listed[Part]) -> None:
    asks: list[Ask] = []
    spans: list[tuple[Part, int, torch.Tensor]] = []
    for part in parts:
        if part.job is None or part.logits is None:
            continue
        if part.sequence.state.plain:
            _take_greatest(part, greatest(part.logits.float().numpy() if part.numbers is None else part.numbers))
            continue
        if not _all_rank(part.logits):
            part.fault = _no_rank()
            continue
        state, position, drafted = part.sequence.state, part.sequence.position - len(part.job.drafted), part.job.drafted
        try:
            if drafted and state.remembers:
                part.chosen = state.choose_all(part.logits, position, drafted)
                continue
            asks += [state.ask(position + step) for step in range(len(drafted) + 1)]
        except MfError as error:
            part.fault = error
            continue
        spans.append((part, len(drafted) + 1, part.logits))
    if not spans:
        return
    chosen, at = choose([logits for _part, _count, logits in spans], asks), 0
    for part, count, _logits in spans:
        _take(part, chosen[at : at + count])
        at += count


def _take_greatest(part: Part, found: list[int] | None) -> None:
    if found is None:
        part.fault = _no_rank()
    else:
        _take(part, [Chosen(token) for token in found])


def _no_rank() -> MfError:
    return MfError("the model gave logits that aren't numbers")


def _all_rank(logits: torch.Tensor) -> bool:
    """Whether each row has a greatest logit: NaN and infinity have none, and a choice among them would look like any token.

    A few rows by numpy, which wakes no other thread for them (20 us a row where torch took 200).
    """
    if logits.dtype != torch.float32 or len(logits) > _FEW:
        return bool(torch.isfinite(logits.amax(-1)).all())
    return bool(np.isfinite(logits.numpy().max(-1)).all())


def _take(part: Part, chosen: list[Chosen]) -> None:
    assert part.job is not None
    right = agreeing([one.token for one in chosen], part.job.drafted)
    part.chosen = chosen[: right + 1]
    if part.sequence.state.remembers:
        try:
            part.sequence.state.accept(chosen[0].token)
        except MfError as error:
            part.fault = error
