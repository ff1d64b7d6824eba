"""What the choice of a sequence's next token depends on beside the logits: sampling, seed, and the reply so far."""

from __future__ import annotations

from collections import Counter

import torch

from protocol.messages import Sampling
from runtime.grammar import Matcher
from runtime.sampler import Ask, Chosen, choose, penalised


class ReplyState:
    """The reply's own tokens by position. A token of position p is what was sampled when all before p had been computed.

    Nothing is taken back when a sequence rewinds: `ask` forgets what lies at and beyond the position it is for, and a replay feeds
    the same tokens again. `seed` as given or drawn; `reply` are the tokens made elsewhere before, right before the first `ask`.
    """

    def __init__(self, sampling: Sampling, seed: int, matcher: Matcher | None = None, reply: list[int] | None = None) -> None:
        self.sampling = sampling
        self.seed = seed
        self._matcher = matcher
        self.remembers = matcher is not None or penalised(sampling)
        """Whether the reply so far matters; then `accept` has to be told each token."""
        self.plain = not self.remembers and Ask(sampling, seed, 0).plain
        """Whether each token is the greatest logit and nothing else is to be said; then nothing has to be asked."""
        self._tokens: list[int] = []
        self._counts: Counter[int] = Counter()
        self._next: int | None = None
        for token in reply or ():
            self._add(token)

    def ask(self, position: int) -> Ask:
        """For the token of `position`; `BadInput` when the grammar can't go on."""
        if self._next is not None:
            self._forget(self._next - position)
        self._next = position
        allowed = self._matcher.allowed() if self._matcher is not None else None
        return Ask(self.sampling, self.seed, position, self._counts, allowed)

    def accept(self, token: int) -> None:
        """`token` is the one at the position last asked for."""
        assert self._next is not None
        self._add(token)
        self._next += 1

    def choose_all(self, logits: torch.Tensor, position: int, drafted: list[int]) -> list[Chosen]:
        """Tokens for `position` and on, from logits [1 + drafted, vocabulary]: the drafted ones as far as they are chosen, and one more."""
        if not self.remembers:
            asks = [self.ask(position + row) for row in range(len(drafted) + 1)]
            chosen = choose(logits, asks)
            return chosen[: agreeing([one.token for one in chosen], drafted) + 1]
        made: list[Chosen] = []
        for row in range(len(drafted) + 1):
            made += choose(logits[row : row + 1], [self.ask(position + row)])
            self.accept(made[-1].token)
            if row == len(drafted) or made[-1].token != drafted[row]:
                break
        return made

    def _add(self, token: int) -> None:
        if not self.remembers:
            return
        self._tokens.append(token)
        self._counts[token] += 1
        if self._matcher is not None:
            self._matcher.accept(token)

    def _forget(self, count: int) -> None:
        dropped = self._tokens[len(self._tokens) - count :] if count > 0 else []
        if not dropped:
            return
        del self._tokens[-len(dropped) :]
        self._counts.subtract(dropped)
        self._counts = +self._counts
        if self._matcher is not None:
            self._matcher.rewind(len(dropped))


def agreeing(chosen: list[int], drafted: list[int]) -> int:
    """How many of the drafted tokens are the chosen ones, from the first on."""
    return next((at for at, token in enumerate(drafted) if token != chosen[at]), len(drafted))
