"""A session whose steps are computed as they come, without an engine."""

from __future__ import annotations

from protocol.errors import MfError
from protocol.messages import Sampling
from runtime import interface as api
from runtime.passes import Part, compute, sample
from runtime.reply_state import ReplyState
from runtime.sequence import Sequence
from runtime.session import Session
from runtime.stage import Stage
from runtime.stage_runner import StageRunner


class Alone:
    def __init__(self, stage: Stage, tokens_max: int, sampling: Sampling) -> None:
        state = ReplyState(sampling, 5 if sampling.seed is None else sampling.seed)
        self.sequence = Sequence("s", "stage", StageRunner(stage), 0, tokens_max, state)
        self._session = Session(self.sequence)

    @property
    def position(self) -> int:
        return self.sequence.position

    def step(self, step: api.Step, cut: int = 256) -> api.Stepped:
        """The answer, computed in cuts of at most `cut` positions."""
        answers: list[api.Stepped | MfError] = []
        self._session.take(step, answers.append)
        while self.sequence.jobs:
            part = Part(self.sequence, min(cut, self.sequence.jobs[0].left))
            compute(self.sequence.runner, [part])
            sample([part])
            if part.job is not None:
                self._session.computed(part.job, part.hidden, part.chosen or [])
        (answer,) = answers
        assert isinstance(answer, api.Stepped)
        return answer
