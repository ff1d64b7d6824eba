"""Prompt-lookup drafting: what followed the last few tokens before is likely to follow them again.

A drafted token costs one row of a pass, a right one saves a whole pass, and through a pipeline a whole round trip. Verifying is exact:
a drafted token counts only where it is the very one that would have been chosen (runtime/sampler.py), so that drafts change the time a
reply takes and nothing else. The length follows success: doubled when all were right, cut to what was right when not; a sequence whose
drafts keep failing drafts rarely. Rejected: a small model beside the large one (memory, and another model to find), leaving out layers
(measured: hardly ever right), trees of drafts (runners compute rows in line).
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol import limits

MOST = limits.MAX_DRAFTED
_FIRST = 4
_GRAMS = (4, 3, 2)
"""Tokens that have to agree, the longest tried first."""
_PAUSE = 16
"""Tokens without a draft after one that failed altogether, doubling from 1."""


class Drafter:
    """Over one sequence's tokens, prompt and reply. Each token is taken in once: a lookup costs no search."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._seen: dict[tuple[int, ...], int] = {}
        self._length = _FIRST
        self._pause = 0
        self._resting = 0
        self.drafted = self.right = 0
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """What is in the sequence now; its last few tokens are looked up only by what comes after them."""
        for token in tokens:
            for size in _GRAMS:
                if len(self._tokens) >= size:
                    self._seen[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """At most `most` tokens that may come next, none where nothing is known or the last ones failed."""
        if self._resting > 0:
            self._resting -= 1
            return []
        count = min(self._length, most, MOST)
        for size in _GRAMS:
            if len(self._tokens) >= size and count > 0:
                at = self._seen.get(tuple(self._tokens[-size:]))
                if at is not None:
                    return self._repeat(at, count)
        return []

    def learn(self, drafted: int, right: int) -> None:
        """How many of the last drafted tokens were right."""
        if not drafted:
            return
        self.drafted, self.right = self.drafted + drafted, self.right + right
        if right:
            self._pause = 0
            self._length = min(2 * self._length, MOST) if right == drafted else max(right + 1, 2)
        else:
            self._pause = min(max(2 * self._pause, 1), _PAUSE)
            self._resting, self._length = self._pause, 2

    def _repeat(self, at: int, count: int) -> list[int]:
        """What followed, over and over where it runs into the end."""
        period = len(self._tokens) - at
        return [self._tokens[at + step % period] for step in range(count)]
