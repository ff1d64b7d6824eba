"""The entry's side of audits of stages: what they said, run again elsewhere now and then, and what becomes of it.

Each session has a key of its own, under which every stage signs prints of its rows while it computes them (`node/statements.py`):
it can't know whether this session will be looked at. One session in 1 / AUDITED, when it is over, is run again from its token ids as
one prefill, each stage on another node, or on this one, that the owner's privacy allows, found like any route. Where the two part
(`runtime/trial.py`) the stage is run a third time, elsewhere again, and who stands alone is blamed: as with wrong bytes, once is noted,
a repeat is a ban. No third, a third that agrees with both or neither, a hand-over, a model with experts: noted, nobody is blamed. The
key goes with the session; what is kept as evidence (`node/evidence_store.py`) are signed prints, which say nothing of the text without it.

However a session ends, it is looked at: over each route that it took, as far as its stages were heard. One that made its reply is held open
for their last words, one whose client left isn't. Whoever could drop out of sight by ending early would do so.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections import deque
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from node.audit_tally import AuditTally
from node.evidence_store import EvidenceStore
from node.heard import MAX_ROWS, Heard, Listening
from node.locate import Located
from node.network.interface import Network
from node.pipeline import Pipeline, PipelineRequest
from node.route import Router
from node.serve_stage import StageServer
from node.steps import Steps
from node.swarm.interface import Swarm
from protocol.errors import MfError
from protocol.ids import PeerId, model_text
from protocol.messages import Checked, Sampling, StageSpec
from protocol.prints import PRINT_KEY, token_print
from protocol.stage_evidence import StageEvidence
from runtime.fingerprint import FEWEST
from runtime.stage_evidence import WORDS, with_statements
from runtime.trial import Difference, Parting, parting, third_says

log = logging.getLogger(__name__)
AUDITED = 0.015
"""Of all sessions, and so of all steps in the mean."""
WAITING = 8
"""Drawn sessions that wait for the audit before them."""
WAIT = 60.0
"""Seconds that one may wait: no prompt stays longer after its reply."""
LAST_WORDS = 0.7
"""Seconds that a drawn session is held open at its end: a little more than a stage lets pass between two statements."""
PATIENCE = 3.0
"""Seconds for the last statements after the last row."""
_WORST = 1e9


@dataclass
class Ended:
    """A session that is over, or what it was over one route: what an audit needs of it. The last of its stages gave the tokens from
    `given` on; steps before `since` are counted elsewhere. `whole`: its stages had time for their last words."""

    located: Located
    precision: str
    tokens: list[int]
    given: int
    sampling: Sampling
    heard: Heard
    since: int = 0
    whole: bool = True
    behind: int = 0
    """Positions that its stages kept of an earlier session, and said nothing of in this one."""

    @property
    def steps(self) -> int:
        return len(self.tokens) - 1 - self.since


Sides = dict[str, tuple[PeerId, list[bytes]]]


@dataclass(frozen=True)
class StageVerdict:
    """What an audit found, in a `word` of node/audit_tally.py. `wrong` names who stood alone; None: nobody is blamed, and `why` says so."""

    word: str
    why: str
    difference: Difference | None = None
    asked: tuple[PeerId, ...] = ()
    wrong: PeerId | None = None
    silent: tuple[PeerId, ...] = ()
    """Who said less than half of what it computed: nothing can be held against its rows."""
    audited: int = 0
    """Steps that were compared."""
    sides: Sides = field(default_factory=dict, repr=False)
    """By their role who signed what."""


class StageAuditor:
    """`part` of the sessions are run again. `store`: where evidence is kept; None: nowhere."""

    def __init__(
        self,
        network: Network,
        swarm: Swarm,
        router: Router,
        steps: Steps,
        server: StageServer,
        tally: AuditTally,
        store: EvidenceStore | None = None,
        rng: Random | None = None,
        part: float | None = None,
    ) -> None:
        self._network, self._swarm, self._router = network, swarm, router
        self._steps, self._server, self._tally, self._store = steps, server, tally, store
        self._rng = rng or Random(secrets.token_bytes(16))
        self._part = AUDITED if part is None else part
        self._busy: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[float, Ended]] = deque()

    def listen(self, stages: list[StageSpec], tokens: int) -> Listening:
        """For a session about to begin with so many tokens: whether it will be run again is drawn now, and told to nobody."""
        return Listening(stages, secrets.token_bytes(PRINT_KEY), self._rng.random() < self._part, tokens)

    async def over(
        self, listening: Listening, located: Located, precision: str, sampling: Sampling, tokens: list[int], *, whole: bool, behind: int = 0
    ) -> None:
        """The session ended with these tokens, and its stages are still there: a drawn one that made its reply (`whole`) waits for their
        last words. It is run again in the background, one at a time. `behind`: positions that its stages kept of an earlier session.
        """
        if not listening.others(self._network.peer_id) or not listening.parts(tokens):
            return
        self._tally.ran(len(tokens) - 1 - behind)
        if not listening.chosen:
            return
        try:
            if whole:
                await listening.heard.until(min(len(tokens) - 1, MAX_ROWS) - behind, LAST_WORDS)
        finally:
            for part in listening.parts(tokens):
                heard_out = whole and part.tokens is tokens
                since = max(part.since, behind)
                self.take(Ended(located, precision, part.tokens, part.given, sampling, part.heard, since, heard_out, behind))

    def take(self, session: Ended) -> None:
        """Something drawn waits to be run again. Beyond WAITING of them, or after WAIT seconds, one is left out and told as "skipped"."""
        self._tally.drew(session.steps)
        if len(self._waiting) >= WAITING:
            self._tally.came("skipped", session.steps)
            return
        self._waiting.append((asyncio.get_running_loop().time(), session))
        if self._busy is None or self._busy.done():
            self._busy = asyncio.create_task(self._work(), name="audit of stages")

    async def close(self) -> None:
        self._waiting.clear()
        if self._busy is not None:
            self._busy.cancel()
            await asyncio.gather(self._busy, return_exceptions=True)

    async def _work(self) -> None:
        while self._waiting:
            since, session = self._waiting.popleft()
            if asyncio.get_running_loop().time() - since > WAIT:
                self._tally.came("skipped", session.steps)
            else:
                await self._run(session)

    async def _run(self, session: Ended) -> None:
        try:
            verdict = await self.audit(session)
        except MfError as error:
            self._tally.came("failed", session.steps)
            log.info("an audit of stages ended early: %s", error)
            return
        await self.note(session, verdict)

    async def audit(self, session: Ended) -> StageVerdict:
        """Runs the session again elsewhere, and a third time where the two part."""
        run = session.heard
        run.settle(session.tokens)
        silent = _silent(session)
        if run.end < FEWEST:
            return StageVerdict("silent" if silent else "short", "too few rows were spoken of", silent=silent)
        others = self._others(session, {PeerId(stage.peer) for stage in run.stages})
        again = self._elsewhere(session, others)
        if all(one.peer == two.peer for one, two in zip(run.stages, again, strict=True)):
            return StageVerdict("nobody", "nobody else may be asked", silent=silent)
        if self._hand_fed(session):
            return StageVerdict("undecided", "the first stage was given other tokens than this node: by whom can't be told", silent=silent)
        second = await self._again(session, again)
        found = parting(run.rows, second.rows, session.precision, run.joints)
        asked, audited = tuple(PeerId(stage.peer) for stage in again), _audited(session, second, silent)
        if found is None:
            return StageVerdict("silent" if silent else "agreed", "the two agree", asked=asked, silent=silent, audited=audited)
        if found.parting is not Parting.HANDOVER and run.stages[found.index].peer == again[found.index].peer:
            return StageVerdict("undecided", "one node differs from itself", found, asked, silent=silent, audited=audited)
        return replace(await self._decide(session, second, found, others), silent=silent, audited=audited)

    async def _decide(self, session: Ended, second: Heard, found: Difference, others: list[PeerId]) -> StageVerdict:
        run, index = session.heard, found.index
        if found.parting is Parting.HANDOVER:
            sides = _side("before", run, index - 1) | _side("session", run, index)
            return StageVerdict("undecided", found.parting.value, found, _peers(sides), sides=sides)
        sides = _side("session", run, index) | _side("again", second, index)
        pair = _peers(sides)
        if session.behind and index:
            return StageVerdict("undecided", "what went into it in an earlier session isn't known", found, pair, sides=sides)
        if has_experts(session.located):
            return StageVerdict("undecided", "a model with experts: honest machines differ like this", found, pair, sides=sides)
        rest = [stage for at, stage in enumerate(second.stages) if at != index]
        spec = self._third(session, run.stages[index], pair, others, rest)
        if spec is None:
            return StageVerdict("undecided", "there is no third to decide", found, pair, sides=sides)
        third = await self._again(session, [*second.stages[:index], spec, *second.stages[index + 1 :]])
        sides |= _side("third", third, index)
        wrong = third_says((run.rows[index], second.rows[index]), third.rows[index], index, found.parting, session.precision)
        if wrong is None:
            return StageVerdict("undecided", "a third agrees with neither of the two", found, _peers(sides), sides=sides)
        return StageVerdict("wrong", found.parting.value, found, _peers(sides), pair[wrong], sides=sides)

    def _third(
        self, session: Ended, stage: StageSpec, pair: tuple[PeerId, ...], others: list[PeerId], rest: list[StageSpec]
    ) -> StageSpec | None:
        """Somebody who wasn't in the session, else who ran other layers of it, which aren't in doubt."""
        within = [peer for peer in self._others(session, set()) if peer not in others]
        for asked in (others, within):
            spec = self._another(session, stage, [peer for peer in asked if peer not in pair], rest)
            if spec is not None:
                return spec
        return None

    def _hand_fed(self, session: Ended) -> bool:
        """Whether the first stage says it got other tokens than this node knows: the last stage may have sent it others."""
        told = session.heard.rows[0].inputs
        wrong = (told[row] != token_print(session.heard.key, row, token) for row, token in enumerate(session.tokens) if row in told)
        return any(wrong)

    def _others(self, session: Ended, ran: set[PeerId]) -> list[PeerId]:
        """Whom the owner's privacy allows, without those who ran it; this node first."""
        offers = self._router.offers(session.located, ran - {self._network.peer_id})
        found = [PeerId(offer.peer) for offer in offers]
        self._rng.shuffle(found)
        return sorted(found, key=lambda peer: peer != self._network.peer_id)

    def _elsewhere(self, session: Ended, others: list[PeerId]) -> list[StageSpec]:
        """The session's stages, as many as there is memory for at others, whichever they are; the rest where they ran."""
        again = list(session.heard.stages)
        for index in self._rng.sample(range(len(again)), len(again)):
            again[index] = self._another(session, again[index], others, [*again[:index], *again[index + 1 :]]) or again[index]
        return again

    def _another(self, session: Ended, stage: StageSpec, others: list[PeerId], beside: list[StageSpec]) -> StageSpec | None:
        """The same layers at one of `others` that has the memory `beside` its other stages, those first that have them loaded; own stages
        need no audit."""
        if stage.peer == self._network.peer_id:
            return None
        fits = self._router.fits(session.located, stage.first, stage.end, len(session.tokens) + 1, session.precision, beside)
        loaded = self._router.serving(session.located, stage.first, stage.end, session.precision)
        able = [peer for peer in others if peer in fits and peer != stage.peer]
        best = min(able, key=lambda peer: (peer not in loaded, others.index(peer)), default=None)
        return None if best is None else StageSpec(best, stage.first, stage.end)

    async def _again(self, session: Ended, stages: list[StageSpec]) -> Heard:
        tokens = session.tokens[: session.heard.end + 1]
        heard = Heard(stages, session.heard.key)
        request = PipelineRequest(
            model=session.located.model,
            stages=stages,
            tokens=tokens[:-1],  # the last one made went into no stage
            new_max=1,
            stop_tokens=[],
            sampling=session.sampling,
            precision=session.precision,
            prints=session.heard.key,
            heard=heard,
            check=Checked(session.given, tokens[session.given :]) if checkable(session.sampling) else None,
        )
        async with Pipeline(self._network, self._steps, self._server, request) as pipeline:
            async for _token in pipeline.run():
                break
            await heard.until(len(tokens) - 1, PATIENCE)
        return heard

    async def note(self, session: Ended, verdict: StageVerdict) -> None:
        """Counts, keeps and tells what was found; blames who stood alone."""
        self._tally.came(verdict.word, session.steps, verdict.audited)
        if verdict.silent:
            log.info(
                "stages that sign nothing can't be audited", extra={"event": "stages_silent", "fields": {"peers": list(verdict.silent)}}
            )
        if verdict.difference is None:
            return
        stage = session.heard.stages[verdict.difference.index]
        layers = f"layers {stage.first}..{stage.end} of {model_text(session.located.model)}"
        fields: dict[str, Any] = {"stage": layers, "asked": list(verdict.asked), "wrong": verdict.wrong, "why": verdict.why}
        log.warning("two runs of %s part: %s", layers, verdict.why, extra={"event": "stage_audit", "fields": fields})
        if verdict.sides:
            await self._keep(session, verdict, verdict.difference)
        if verdict.wrong is not None and verdict.wrong != self._network.peer_id:
            self._swarm.blame(verdict.wrong, layers, verdict.why)

    async def _keep(self, session: Ended, verdict: StageVerdict, found: Difference) -> None:
        if self._store is None:
            return
        evidence = _evidence(session, verdict, found)
        try:
            await self._store.add(lambda: with_statements(evidence, verdict.sides))
        except (MfError, sqlite3.Error) as error:
            log.error("evidence of a stage wasn't kept: %s", error, extra={"event": "evidence_unkept"})


def _evidence(session: Ended, verdict: StageVerdict, found: Difference) -> StageEvidence:
    """Without what was said."""
    stage, rows = session.heard.stages[found.index], session.heard.rows[found.index].inputs
    return StageEvidence(
        at=int(time.time()),
        model=session.located.model,
        precision=session.precision,
        first=stage.first,
        end=stage.end,
        parting=WORDS[found.parting],
        why=verdict.why,
        until=max(rows) + 1 if rows else session.heard.end,
        rows=found.finding.rows,
        apart=found.finding.apart,
        worst=min(found.finding.worst, _WORST),
        said=[],
        wrong=verdict.wrong,
    )


def _side(role: str, heard: Heard, index: int) -> Sides:
    return {role: (PeerId(heard.stages[index].peer), list(heard.envelopes[index]))}


def _peers(sides: Sides) -> tuple[PeerId, ...]:
    return tuple(peer for peer, _ in sides.values())


def _silent(session: Ended) -> tuple[PeerId, ...]:
    """Who had time to speak of its rows, and left out half of them."""
    if not session.whole:
        return ()
    heard, rows = session.heard, min(len(session.tokens) - 1, MAX_ROWS) - session.heard.before
    return tuple(PeerId(stage.peer) for stage, said in zip(heard.stages, heard.rows, strict=True) if len(said.inputs) < rows / 2)


def _audited(session: Ended, second: Heard, silent: tuple[PeerId, ...]) -> int:
    """Steps that were run again and compared at every stage elsewhere that isn't silent."""
    compared = [
        len([row for row in one.inputs.keys() & two.inputs.keys() if row >= session.since])
        for mine, other, one, two in zip(session.heard.stages, second.stages, session.heard.rows, second.rows, strict=True)
        if mine.peer != other.peer and mine.peer not in silent
    ]
    return min(compared, default=0)


def checkable(sampling: Sampling) -> bool:
    """Whether a token can be held against logits alone: what looks at the reply before it, or bends the logits, is left out."""
    bent = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0 or sampling.min_p
    return not (bent or sampling.logit_bias or sampling.grammar)


def seeded(sampling: Sampling) -> Sampling:
    """With a seed of this node's choice where none was given, so that its draws can be made again."""
    if sampling.temperature <= 0 or sampling.seed is not None:
        return sampling
    fields = {name: getattr(sampling, name) for name in Sampling.__struct_fields__}
    return Sampling(**(fields | {"seed": secrets.randbits(63)}))


def has_experts(located: Located) -> bool:
    return any("expert" in tensor.name for tensor in located.manifest.tensors)
