"""One session's state in one stage: its KV cache, its position, and what makes its steps idempotent."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict

import torch

from protocol.errors import BadInput, Conflict
from protocol.messages import Sampling
from runtime import transformers_names as names
from runtime.check_rows import check_rows
from runtime.interface import Step, Stepped
from runtime.sampler import sample
from runtime.stage import Stage

_REMEMBERED = 8
"""Answers kept for a sender that asks again."""

_WORDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class Sequence:
    """Steps through `stage` with room for `tokens_max` positions."""

    def __init__(self, stage: Stage, tokens_max: int, sampling: Sampling) -> None:
        self.stage = stage
        self.tokens_max = tokens_max
        self.sampling = sampling
        self.position = 0
        self.epoch = 0
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._cache = stage.new_cache()
        self._answers: OrderedDict[int, Stepped] = OrderedDict()

    def step(self, step: Step) -> Stepped:
        """The step's answer; `Conflict` for a gap or an old epoch, `BadInput` for wrong shapes or too many positions."""
        self._enter_epoch(step)
        known = self._answers.get(step.position)
        if known is not None and step.position < self.position:
            return known
        if step.position != self.position:
            raise Conflict(f"the session stands at position {self.position}, the step begins at {step.position}")
        tokens, hidden, count = self._input(step)
        if self.position + count > self.tokens_max:
            raise BadInput(f"position {self.position + count} is beyond the session's room of {self.tokens_max}")
        answer = self._run(step, tokens, hidden, count)
        self._answers[step.position] = answer
        if len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        return answer

    def _run(self, step: Step, tokens: torch.Tensor | None, hidden: torch.Tensor | None, count: int) -> Stepped:
        begun = time.perf_counter()
        before = self.position
        try:
            self.stage.tell_position(self._cache, before)
            gaps = None
            if step.check is None:
                out = self.stage.forward(self._cache, tokens, hidden)
            else:
                out, gaps = self._checked(tokens, hidden, step.check)
        except BaseException:
            self._restart()
            raise
        self.position = before + count
        answer = self._answer(out, step.sample)
        if step.tail and self.stage.last and self.stage.tail is not None:
            answer.hidden = _raw(self.stage.tail)
        answer.gaps = gaps
        answer.began, answer.seconds = begun, time.perf_counter() - begun
        return answer

    def _checked(self, tokens: torch.Tensor | None, hidden: torch.Tensor | None, given: list[int]) -> tuple[torch.Tensor, list[float]]:
        if not self.stage.last:
            raise BadInput("step: tokens are checked by the last stage, this isn't it")
        return check_rows(self.stage, self._cache, tokens, hidden, self.position, given, self.sampling, self._seed)

    def _answer(self, out: torch.Tensor, sampled: bool) -> Stepped:
        if not self.stage.last:
            return Stepped(hidden=_raw(out), dtype=_WORDS[out.dtype], shape=list(out.shape))
        return Stepped(token=sample(out, self.sampling, self._seed, self.position)) if sampled else Stepped()

    def _input(self, step: Step) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
        if (step.tokens is None) == (step.hidden is None):
            raise BadInput("step: give either tokens or hidden")
        if step.tokens is not None:
            return self._tokens(step.tokens), None, len(step.tokens)
        return None, self._hidden(step), step.count

    def _tokens(self, tokens: list[int]) -> torch.Tensor:
        if self.stage.first:
            raise BadInput("step: tokens go to the first stage, this one takes hidden states")
        if not tokens or min(tokens) < 0 or max(tokens) >= self.stage.vocabulary:
            raise BadInput(f"step: token ids must lie in 0..{self.stage.vocabulary - 1}, at least one")
        return torch.tensor(tokens, dtype=torch.long)

    def _hidden(self, step: Step) -> torch.Tensor:
        raw = step.hidden or b""
        wanted = step.count * self.stage.hidden * self.stage.dtype.itemsize
        if not self.stage.first or step.count <= 0 or len(raw) != wanted:
            raise BadInput(f"step: {len(raw)} bytes of hidden states for {step.count} positions, {max(wanted, 0)} are right")
        return torch.frombuffer(bytearray(raw), dtype=self.stage.dtype).view(step.count, self.stage.hidden)

    def _enter_epoch(self, step: Step) -> None:
        if step.epoch < self.epoch:
            raise Conflict(f"the session is in epoch {self.epoch}, the step is of {step.epoch}")
        if step.epoch == self.epoch:
            return
        if not 0 <= step.position <= self.position:
            raise Conflict(f"the session stands at position {self.position}, epoch {step.epoch} begins at {step.position}")
        self._rewind(step.position)
        self.epoch = step.epoch

    def _rewind(self, position: int) -> None:
        """Drops what lies at and beyond `position`."""
        dropped = self.position - position
        self._answers.clear()
        if position == 0:
            self._restart()
            return
        try:
            for slot in self.stage.local_slots(self._cache):
                names.crop_slot(slot, dropped)
        except RuntimeError as error:
            self._restart()
            raise Conflict("this model's memory can't go back", hint="replay the session from position 0") from error
        self.position = position

    def _restart(self) -> None:
        self._cache = self.stage.new_cache()
        self._answers.clear()
        self.position = 0


def _raw(hidden: torch.Tensor) -> bytes:
    return bytes(hidden.contiguous().view(torch.uint8).numpy())
