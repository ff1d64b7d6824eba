"""What the last stage says of its tokens, as the entry believes it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from protocol.errors import PeerFault
from protocol.messages import Sampling, StepHead, TokenLogprob

_SLACK = 1e-3
"""By which a logarithm may lie above 0: sums in fp32 are rounded."""


@dataclass(frozen=True)
class Asked:
    """What the reply was asked to be: it ends at a token of `stop_tokens`, or with position `end` - 1."""

    stop_tokens: Sequence[int]
    end: int
    vocabulary: int | None
    sampling: Sampling

    def finish(self, token: int, position: int) -> str | None:
        """How this token ends the reply, if it does."""
        if token in self.stop_tokens:
            return "stop"
        return "length" if position + 1 >= self.end else None


def check_tokens(head: StepHead, tokens: Sequence[int], due: int, asked: Asked) -> None:
    """`PeerFault` for tokens that can't be, an end that isn't one or isn't told, and logarithms that aren't those asked for."""
    top = asked.vocabulary
    for at, token in enumerate(tokens):
        position = head.position + at
        if position != due + at or token < 0 or (top is not None and token >= top) or position >= asked.end:
            raise PeerFault(f"it answered token {token} of {top} at {position}, where {due + at} is next")
        told = head.finish if at == len(tokens) - 1 else None
        if told != asked.finish(token, position):
            raise PeerFault(f"it says that the reply ends by {str(told)[:16]} at {position}: that isn't so")
    _check_logprobs(head.logprobs, tokens, asked)


def _check_logprobs(given: list[TokenLogprob] | None, tokens: Sequence[int], asked: Asked) -> None:
    most = asked.sampling.logprobs
    if most is None:
        if given is not None:
            raise PeerFault("logarithms that nobody asked for")
        return
    if not given or len(tokens) != 1 or given[0].token != tokens[0]:
        raise PeerFault("logarithms of another token than the one chosen, or none")
    likeliest = given[1:]
    full = most if asked.vocabulary is None else min(most, asked.vocabulary)
    fewest = 0 if asked.sampling.grammar is not None else full  # what a grammar forbids has no logarithm
    if not fewest <= len(likeliest) <= full or len({one.token for one in likeliest}) != len(likeliest):
        raise PeerFault(f"logarithms of {len(likeliest)} likeliest tokens, {full} different ones were asked")
    for one in given:
        if one.token < 0 or (asked.vocabulary is not None and one.token >= asked.vocabulary) or not -math.inf < one.logprob <= _SLACK:
            raise PeerFault(f"a logarithm of {one.logprob} for token {one.token}")
    if any(after.logprob > before.logprob for before, after in pairwise(likeliest)):
        raise PeerFault("the likeliest tokens aren't in their order")
