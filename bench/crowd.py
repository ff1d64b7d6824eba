"""Many sequences at once: what they are asked, and what came of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 512


def prompts(words: Sequence[int], count: int, new: int, seed: int = 7) -> list[list[int]]:
    """Cuts of a text, of 32 tokens and more, so that none is over 512 once `new` are made."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        length = rng.randint(32, LONGEST - new)
        begin = rng.randrange(len(words) - length)
        found.append(list(words[begin : begin + length]))
    return found


@dataclass(frozen=True)
class Pace:
    """Tokens a second of all together: `steady` while all of them decode, `joining` from the first question to the last token."""

    steady: float
    joining: float
    window: float
    """Seconds of the steady part."""


def pace(began: float, at: Sequence[Sequence[float]]) -> Pace:
    """`at`: when each token came, for each sequence."""
    first, last = max(times[0] for times in at), min(times[-1] for times in at)
    if last <= first:
        raise RuntimeError("some ended before all had begun: more new tokens are needed")
    made = sum(first < time <= last for times in at for time in times)
    return Pace(made / (last - first), sum(map(len, at)) / (max(times[-1] for times in at) - began), last - first)
