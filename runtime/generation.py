"""A reply made whole in the worker: the loop from token to token runs here, and the node hears of them once a pass.

Where the model is whole on this machine, a message to the node and back for each token would cost more than a small model's step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from protocol.errors import Conflict, MfError
from runtime.drafting import Drafter
from runtime.interface import UNCHECKED, Generate, Generated, Made
from runtime.sampler import Chosen
from runtime.sequence import Job, Sequence
from runtime.text import TextStream

Answer = Callable[[Generated | MfError], None]
Tell = Callable[[Made], None]


class Generation:
    """Drives `sequence` from the prompt to the reply's end; `reused` positions of the prompt are in its slot already.

    `tell` gets the tokens of each pass, with their text where there is a `stream` for it; `answer` is called once, after the last.
    `drafter` None makes one token a pass; `draft_room` says how many guesses the next one has room for.
    """

    def __init__(
        self,
        sequence: Sequence,
        asked: Generate,
        stream: TextStream | None,
        drafter: Drafter | None,
        answer: Answer,
        tell: Tell,
        reused: int,
        draft_room: Callable[[], int],
    ) -> None:
        self.sequence = sequence
        self.tokens = list(asked.tokens)
        self.over = False
        self._asked = asked
        self._stream = stream
        self._drafter = drafter
        self._answer, self._tell = answer, tell
        self._draft_room = draft_room
        self._made = 0
        self._done = Generated(reused=reused)
        self._begun = time.perf_counter()
        if stream is not None:
            for token in asked.reply or ():
                stream.feed([token], False)
        sequence.driver = self
        sequence.position = reused
        self._ask(self.tokens[reused:], [])
        if asked.score:
            sequence.jobs[0].score = [*self.tokens[1:], UNCHECKED]

    def computed(self, job: Job, hidden: torch.Tensor | bytes | None, chosen: list[Chosen]) -> None:
        right = len(chosen) - 1
        if self._drafter is not None:
            self._drafter.learn(len(job.drafted), right)
        self._account(job, right)
        kept, finish = self._until_end(chosen)
        if job.score is not None:
            self._tell(Made(self.sequence.name, [], scored=job.scored))
        self.tokens += [one.token for one in kept]
        self._made += len(kept)
        self._say(kept, finish)
        if finish is not None:
            self._end(finish)
            return
        position = len(self.tokens) - 1
        try:
            self.sequence.rewind(position)
        except Conflict:
            self._ask(self.tokens, [])  # this model's memory can't go back: all again, and no more guesses
            self._drafter = None
            return
        if self._drafter is not None:
            self._drafter.extend([one.token for one in kept])
        room = min(self._asked.new_max - self._made, self.sequence.tokens_max - len(self.tokens)) - 1
        drafted = self._drafter.draft(min(room, self._draft_room())) if self._drafter is not None else []
        self._ask([self.tokens[-1], *drafted], drafted)

    def failed(self, error: MfError) -> None:
        if not self.over:
            self.over = True
            self._answer(error)

    def _ask(self, tokens: list[int], drafted: list[int]) -> None:
        self.sequence.jobs.append(Job(self.sequence.position, len(tokens), tokens=tokens, drafted=drafted))

    def _until_end(self, chosen: list[Chosen]) -> tuple[list[Chosen], str | None]:
        """What of it belongs to the reply (the token that stops it too), and why it ends there."""
        for at, one in enumerate(chosen, 1):
            if one.token in self._asked.stop_tokens:
                return chosen[:at], "stop"
            if self._made + at >= self._asked.new_max:
                return chosen[:at], "length"
        return chosen, None

    def _account(self, job: Job, right: int) -> None:
        done = self._done
        if not self._made:
            done.wait, done.prefill = max(job.began - self._begun, 0.0), job.seconds
        else:
            done.decode += job.seconds
            done.passes += 1
        done.drafted, done.right = done.drafted + len(job.drafted), done.right + right

    def _say(self, kept: list[Chosen], finish: str | None) -> None:
        shown = [one.token for one in (kept[:-1] if finish == "stop" else kept)]
        text, spelled = "", None
        if self._stream is not None:
            text = self._stream.feed(shown, finish is not None)
            if self._asked.sampling.logprobs is not None:
                spelled = [[self._stream.spell(entry) for entry in one.logprobs or []] for one in kept[: len(shown)]]
        self._tell(Made(self.sequence.name, [one.token for one in kept], text, spelled, finish))

    def _end(self, finish: str) -> None:
        self.over = True
        self._done.finish, self._done.made = finish, self._made
        self._answer(self._done)
