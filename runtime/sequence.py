"""One session's tokens in one stage: its slot, its position, and what of it waits to be computed.

A job is what shall be computed at once from the outside's view: a prompt, a token, or a token and drafted ones behind it. A pass takes
as much of it as the scheduler says. Who gave the job (a step of the node's, or a reply that is made here) is told when it's done.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import torch

from protocol.errors import Conflict, MfError
from protocol.messages import TokenLogprob
from runtime.interface import Onward
from runtime.model_runner import Alone, ModelRunner, Row
from runtime.reply_state import ReplyState
from runtime.sampler import Chosen


@dataclass(slots=True)
class Job:
    """Positions [position, position + count); give `tokens` or `hidden` [count, hidden]. The last `drafted` tokens are guesses.

    An audit gives in `check` what came after each position, or UNCHECKED, and gets `gaps` (runtime/token_gap.py); `tail` gives what a
    last stage has before its head. `score` are the prompt's next tokens, or UNCHECKED, and gets `scored` (runtime/prompt_scores.py).
    `onward`: what comes of it may go there by itself (runtime/lanes.py), once it is known to be `finite`.
    """

    position: int
    count: int
    tokens: list[int] | None = None
    hidden: torch.Tensor | None = None
    sample: bool = True
    drafted: list[int] = field(default_factory=list)
    check: list[int] | None = None
    tail: bool = False
    score: list[int] | None = None
    scored: list[list[TokenLogprob]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0
    began: float = 0.0
    outs: list[torch.Tensor] = field(default_factory=list)
    onward: Onward | None = None
    finite: bool = False

    @property
    def left(self) -> int:
        return self.count - self.computed

    @property
    def plain(self) -> bool:
        """One position of which nothing is asked but what comes of it."""
        return self.count == 1 and self.check is None and self.score is None and not self.tail


class Driver(Protocol):
    """Who gives a sequence its jobs."""

    def computed(self, job: Job, hidden: torch.Tensor | bytes | None, chosen: list[Chosen]) -> None:
        """The job is done: `hidden` [count, hidden] of a stage that isn't the last (or its tail), or a row's bytes, and what was chosen."""

    def failed(self, error: MfError) -> None:
        """The job at the front couldn't be computed; the sequence is at position 0 again."""


class Sequence:
    """`account` and `priority` are the scheduler's to weigh. `driver` is set by whoever drives it."""

    def __init__(self, name: str, stage: str, runner: ModelRunner, slot: int, tokens_max: int, state: ReplyState) -> None:
        self.name, self.stage, self.runner, self.slot = name, stage, runner, slot
        self.tokens_max = tokens_max
        self.state = state
        self.account, self.priority = "", 0
        self.position = 0
        self.jobs: deque[Job] = deque()
        self.driver: Driver
        self.last = runner.end == runner.layers
        self.alone = runner if isinstance(runner, Alone) else None

    @property
    def due(self) -> int:
        """Where the next job has to begin."""
        return self.jobs[-1].position + self.jobs[-1].count if self.jobs else self.position

    def row(self, count: int) -> tuple[Row, torch.Tensor | None]:
        """The next `count` positions of the job at the front."""
        job = self.jobs[0]
        begin, end = job.computed, job.computed + count
        logits = len(job.drafted) + 1 if self.last and job.sample and end == job.count else 0
        logits = count if self.last and (job.check is not None or job.score is not None) else logits
        tokens = None if job.tokens is None else job.tokens[begin:end]
        hidden = None if job.hidden is None else job.hidden[begin:end]
        return Row(self.slot, job.position + begin, count, tokens, logits), hidden

    def advance(self, count: int) -> Job | None:
        """`count` more positions are computed; the job, if that was the rest of it."""
        job = self.jobs[0]
        job.computed += count
        self.position = job.position + job.computed
        return self.jobs.popleft() if not job.left else None

    def rewind(self, position: int) -> None:
        """Drops what lies at and beyond `position`; `Conflict`, at position 0, where this model's memory can't go back."""
        self.jobs.clear()
        if position >= self.position:
            return
        try:
            self.runner.crop(self.slot, position)
        except Conflict:
            self.restart()
            raise
        self.position = position

    def restart(self) -> None:
        self.jobs.clear()
        self.runner.release(self.slot)
        self.position = 0
