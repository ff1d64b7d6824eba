"""What the stages of one session said of what they computed, as its entry hears it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Iterable
from dataclasses import dataclass

from protocol import limits
from protocol.messages import StageSpec
from protocol.prints import open_prints, token_print
from runtime.fingerprint import same_rows
from runtime.trial import StageRows

log = logging.getLogger(__name__)
MAX_ROWS = 4_096
"""Rows of a session that are looked at, the first ones."""

MAX_SAID = 4 << 20
"""Bytes of statements kept of one stage: rows may be said again, after guesses that were wrong, but not without end."""
MAX_ROUTES = 4
"""Routes of one session that are looked at, beside its last one."""


class Heard:
    """What the stages of one run said under `key`, checked for signer and session; `envelopes` are what they signed.

    `chosen`: the run will be looked at; of any other nothing is kept, though all is checked. `joints`: a stage got its rows before its
    joint from another one than that before it here.
    """

    def __init__(self, stages: list[StageSpec], key: bytes, chosen: bool = True, joints: list[int] | None = None) -> None:
        self.stages, self.key, self.chosen = stages, key, chosen
        self.rows = [StageRows() for _ in stages]
        self.envelopes: list[list[bytes]] = [[] for _ in stages]
        self.joints = joints or [0] * len(stages)
        self.before = 0
        """Rows that the stages had from an earlier session: of those nothing is said now."""
        self._said = [0] * len(stages)
        self._tails = [0] * len(stages)
        self.more = asyncio.Event()

    def take(self, spec: StageSpec, session: bytes, envelopes: Iterable[bytes]) -> None:
        """`BadInput` for what is no statement; one of another stage or session is left out."""
        if spec not in self.stages:
            return
        index = self.stages.index(spec)
        for envelope in envelopes:
            signer, prints = open_prints(envelope)
            if (signer, prints.session, prints.first, prints.end) != (spec.peer, session, spec.first, spec.end):
                log.warning("a statement from %s is of another stage or session", spec.peer)
                continue
            full = len(self.rows[index].inputs) >= MAX_ROWS or self._said[index] + len(envelope) > MAX_SAID
            if full or not self.chosen:
                continue
            self._said[index] += len(envelope)
            self._tails[index] = max(prints.position, prints.position + prints.count - limits.MAX_DRAFTED)
            self.envelopes[index].append(envelope)
            self.rows[index].take(prints)
        self.more.set()

    def rerouted(self, stages: list[StageSpec], tokens: list[int], kept: Container[StageSpec]) -> None:
        """Nothing: an audit's run that loses a stage is over."""

    def resumed(self, begin: int) -> None:
        """All stages go on from row `begin`: what they said of later ones was of the route before."""
        for index, rows in enumerate(self.rows):
            rows.end(begin)
            self._tails[index] = min(self._tails[index], begin)
            self.envelopes[index] = [one for one in self.envelopes[index] if open_prints(one)[1].position < begin]

    async def until(self, rows: int, seconds: float) -> None:
        """Until every stage has spoken of so many rows."""
        try:
            async with asyncio.timeout(seconds):
                while any(len(stage.inputs) < rows - self.before for stage in self.rows):
                    self.more.clear()
                    await self.more.wait()
        except TimeoutError:
            return

    def begun(self, before: int) -> None:
        """All stages had so many rows when the session began; what follows comes of those too, so a stage that lied about them shows."""
        self.before = before

    def onto(self, stages: list[StageSpec], begin: int, kept: Container[StageSpec]) -> Heard:
        """The same session over another route, from row `begin` on: the stages that were `kept` keep what they said."""
        after = Heard(stages, self.key, self.chosen)
        for index, spec in enumerate(stages):
            if spec not in kept or spec not in self.stages:
                continue
            old = self.stages.index(spec)
            after.rows[index], after.envelopes[index] = self.rows[old].copy(), list(self.envelopes[old])
            after._said[index], after._tails[index] = self._said[old], self._tails[old]
            after.joints[index] = self.joints[old] if index == 0 or stages[index - 1] in kept else begin
        after.before = self.before if any(spec in kept for spec in self.stages) else 0
        return after

    def settle(self, tokens: list[int]) -> None:
        """Leaves out, of a stage that wasn't heard to its end, rows that may have been of guesses: it goes back over those, and says them
        again. They are among the last ones of its last statement; these stay as far as they fit what this node knows of what went in."""
        for index, (rows, tail) in enumerate(zip(self.rows, self._tails, strict=True)):
            ends = (row for row in sorted(rows.inputs) if row >= len(tokens) - 1 or (row >= tail and not self._fits(index, row, tokens)))
            if (end := next(ends, None)) is not None:
                rows.end(end)

    def _fits(self, index: int, row: int, tokens: list[int]) -> bool:
        mine = self.rows[index].inputs[row]
        if row < self.joints[index]:
            return True
        if index == 0:
            return mine == token_print(self.key, row, tokens[row])
        before = self.rows[index - 1].outputs.get(row)
        return before is not None and not same_rows(before, mine).differs

    @property
    def end(self) -> int:
        """One past the last row that anybody spoke of, and that is looked at."""
        return min(MAX_ROWS, max((max(rows.inputs, default=-1) + 1 for rows in self.rows), default=0))


@dataclass(frozen=True)
class Part:
    """A session over one of its routes: `tokens` there were at its end, of which its last stage gave those from `given` on. The steps
    before `since` are another part's."""

    heard: Heard
    tokens: list[int]
    given: int
    since: int


class Listening:
    """One session from its beginning to its end, over each of its routes: `heard` is what is said over the one now."""

    def __init__(self, stages: list[StageSpec], key: bytes, chosen: bool, tokens: int) -> None:
        """`tokens` there are before it begins."""
        self.key, self.chosen = key, chosen
        self.heard = Heard(stages, key, chosen)
        self._given, self._since, self._begun = tokens, 0, tokens
        self._over: list[Part] = []

    def take(self, spec: StageSpec, session: bytes, envelopes: Iterable[bytes]) -> None:
        self.heard.take(spec, session, envelopes)

    def rerouted(self, stages: list[StageSpec], tokens: list[int], kept: Container[StageSpec]) -> None:
        """The session begins, or goes on over other stages after these tokens; `kept` are those that stayed as they were. A route that gave
        no token is left out: no reply was made of it."""
        old = self.heard
        self.heard = old.onto(stages, len(tokens) - 1, kept)
        if len(tokens) > self._begun:
            if self.chosen and len(self._over) < MAX_ROUTES:
                self._over.append(Part(old, list(tokens), self._given, self._since))
                self._since = len(tokens) - 1
            self._begun = len(tokens)
        if stages[-1] not in kept:
            self._given = len(tokens)

    def resumed(self, begin: int) -> None:
        self.heard.resumed(begin)

    def begun(self, before: int) -> None:
        self.heard.begun(before)

    def others(self, me: str) -> bool:
        """Whether anybody else ran, or runs, a part of it."""
        return any(stage.peer != me for heard in (self.heard, *(part.heard for part in self._over)) for stage in heard.stages)

    def parts(self, tokens: list[int]) -> list[Part]:
        """All of it, once it is over with these tokens."""
        last = [Part(self.heard, tokens, self._given, self._since)] if len(tokens) > self._begun else []
        return [*self._over, *last]
