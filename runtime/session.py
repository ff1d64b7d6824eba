"""Steps of the node's through one sequence: what makes them idempotent, and what of them is believed.

A (session, epoch, position) seen before is answered again; a gap is a conflict; a new epoch drops what lies at and beyond its
position. After a step with drafted tokens the next one says by its position how many of them were right: what lies beyond goes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

import torch

from protocol.errors import BadInput, Conflict, MfError
from runtime.drafting import MOST
from runtime.interface import UNCHECKED, Step, Stepped
from runtime.lanes import Lanes
from runtime.row_bytes import RowBytes
from runtime.sampler import Chosen
from runtime.sequence import Job, Sequence

Answer = Callable[[Stepped | MfError], None]
_REMEMBERED = 8
"""Answers kept for a sender that asks again."""
_WORDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class Session:
    """Drives `sequence` by steps."""

    def __init__(self, sequence: Sequence, lanes: Lanes | None = None) -> None:
        self.sequence = sequence
        self._lanes = lanes
        self.epoch = 0
        self._stepped = False
        self._asking: deque[Answer] = deque()
        self._answers: OrderedDict[int, Stepped] = OrderedDict()
        self._open_to: tuple[int, int] | None = None
        self._width, self._word = sequence.runner.hidden, _WORDS[sequence.runner.dtype]
        self._row = RowBytes(sequence.runner.hidden, sequence.runner.dtype)
        sequence.driver = self

    def take(self, step: Step, answer: Answer) -> None:
        """Queues the step's job, or answers at once. `Conflict`: a gap or an old epoch; `BadInput`: wrong shapes or too many positions."""
        self._enter_epoch(step)
        sequence = self.sequence
        known = self._answers.get(step.position)
        if known is not None and step.position < sequence.position:
            answer(known)
            return
        self._go_back(step)
        self._begin(step)
        if step.position != sequence.due:
            raise Conflict(f"the session stands at position {sequence.due}, the step begins at {step.position}")
        job = self._job(step)
        if step.position + job.count > sequence.tokens_max:
            raise BadInput(f"position {step.position + job.count} is beyond the session's room of {sequence.tokens_max}")
        sequence.jobs.append(job)
        self._asking.append(answer)

    def computed(self, job: Job, hidden: torch.Tensor | bytes | None, chosen: list[Chosen]) -> None:
        answer = Stepped(began=job.began, seconds=job.seconds)
        answer.gaps = job.gaps if job.check is not None else None
        answer.scored = job.scored if job.score is not None else None
        if hidden is not None:
            answer.hidden = hidden if isinstance(hidden, bytes) else self._row.write(hidden) if self._row.fits(hidden) else _raw(hidden)
        if hidden is not None and not self.sequence.last:
            answer.dtype, answer.shape = self._word, [job.count, self._width]
            if job.drafted:
                self._open_to = (job.position, job.position + job.count)
        if chosen:
            first, *more = chosen
            answer.token, answer.logprobs = first.token, first.logprobs
            if more:
                answer.more = [one.token for one in more]
                answer.more_logprobs = [one.logprobs or [] for one in more] if first.logprobs is not None else None
            if len(more) < len(job.drafted):
                self.sequence.rewind(job.position + job.count - len(job.drafted) + len(more))
        if job.onward is not None and self._lanes is not None:
            answer.sent = self._lanes.send(job.onward, answer, finite=job.finite)
        self._answers[job.position] = answer
        if len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        self._asking.popleft()(answer)

    def failed(self, error: MfError) -> None:
        self._answers.clear()
        self._open_to = None
        asking, self._asking = self._asking, deque()
        for number, answer in enumerate(asking):
            answer(error if number == 0 else Conflict("a step before this one failed"))

    def _go_back(self, step: Step) -> None:
        """To behind the drafted tokens that were right."""
        if self._open_to is None or self.sequence.jobs:
            return
        begin, end = self._open_to
        if begin < step.position < end == self.sequence.position:
            self.sequence.rewind(step.position)
        self._open_to = None

    def _begin(self, step: Step) -> None:
        """The first step may begin before the end of what was taken over: not every stage of the route had as much."""
        if not self._stepped and 0 <= step.position < self.sequence.position:
            if step.position == 0:
                self.sequence.restart()
            else:
                self.sequence.rewind(step.position)
        self._stepped = True

    def _enter_epoch(self, step: Step) -> None:
        if step.epoch < self.epoch:
            raise Conflict(f"the session is in epoch {self.epoch}, the step is of {step.epoch}")
        if step.epoch == self.epoch:
            return
        if not 0 <= step.position <= self.sequence.position:
            raise Conflict(
                f"the session stands at position {self.sequence.position}, epoch {step.epoch} begins at {step.position}",
            )
        self.failed(Conflict(f"epoch {step.epoch} has begun"))
        if step.position == 0:
            self.sequence.restart()
        else:
            self.sequence.rewind(step.position)
        self.epoch = step.epoch

    def _job(self, step: Step) -> Job:
        if (step.tokens is None) == (step.hidden is None):
            raise BadInput("step: give either tokens or hidden")
        guessed = step.guessed
        if not 0 <= guessed <= MOST or guessed >= max(step.count, 1):
            raise BadInput(f"step: {guessed} guessed tokens of {step.count}, at most {MOST} and fewer than all are right")
        if step.tokens is not None:
            if self.sequence.runner.first:
                raise BadInput("step: tokens go to the first stage, this one takes hidden states")
            self._check_tokens(step.tokens)
            drafted = step.tokens[len(step.tokens) - guessed :]
            job = Job(step.position, len(step.tokens), tokens=step.tokens, sample=step.sample, drafted=drafted)
        else:
            drafted = step.drafted or [UNCHECKED] * guessed
            if len(drafted) != guessed:
                raise BadInput(f"step: {len(drafted)} ids of {guessed} guessed tokens")
            job = Job(step.position, step.count, hidden=self._hidden(step), sample=step.sample, drafted=drafted)
        job.check, job.tail = self._check(step.check, job.count), step.tail
        job.score = self._check(step.score, job.count)
        job.onward = step.onward if job.plain else None
        return job

    def _check(self, check: list[int] | None, count: int) -> list[int] | None:
        runner = self.sequence.runner
        if check is None:
            return None
        if not self.sequence.last:
            raise BadInput("step: tokens are checked by the last stage, this isn't it")
        if len(check) != count or not all(UNCHECKED <= token < runner.vocabulary for token in check):
            raise BadInput(f"step: {count} rows to check against {len(check)} tokens, each in 0..{runner.vocabulary - 1}")
        return check

    def _check_tokens(self, tokens: list[int]) -> None:
        top = self.sequence.runner.vocabulary
        if not tokens or min(tokens) < 0 or max(tokens) >= top:
            raise BadInput(f"step: token ids must lie in 0..{top - 1}, at least one")

    def _hidden(self, step: Step) -> torch.Tensor:
        runner, raw = self.sequence.runner, step.hidden or b""
        wanted = step.count * runner.hidden * runner.dtype.itemsize
        if not runner.first or step.count <= 0 or len(raw) != wanted:
            raise BadInput(f"step: {len(raw)} bytes of hidden states for {step.count} positions, {max(wanted, 0)} are right")
        if step.count == 1 and not self.sequence.jobs:  # else it would have to stay for longer than to the next pass
            return self._row.read(raw)
        return torch.frombuffer(bytearray(raw), dtype=runner.dtype).view(step.count, runner.hidden)


def _raw(hidden: torch.Tensor) -> bytes:
    return bytes(hidden.contiguous().view(torch.uint8).cpu().numpy())
