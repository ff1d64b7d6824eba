"""The entry's side of audits of stages: what they said, run again elsewhere now and then, and what becomes of it.

Each session has a key of its own, under which every stage signs prints of its rows while it computes them (`node/statements.py`):
it can't know whether this session will be looked at. One session in 1 / AUDITED, when it is over, is run again from its token ids as
one prefill, each stage on another node, or on this one, that the owner's privacy allows, found like any route. Where the two part
(`runtime/trial.py`) the stage is run a third time, elsewhere again, and who stands alone is blamed: as with wrong bytes, once is noted,
a repeat is a ban. No third, a third that agrees with both or neither, a hand-over, a model with experts: noted, nobody is blamed. The
key goes with the session; what is kept as evidence are the signed prints, which say nothing of the text without it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from node.heard import MAX_ROWS, Heard
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
from runtime.trial import Difference, Parting, parting, third_says

log = logging.getLogger(__name__)
AUDITED = 0.015
"""Of all sessions, and so of all steps in the mean."""
EVIDENCE_KEPT = 64
LAST_WORDS = 0.7
"""Seconds that a drawn session is held open at its end: a little more than a stage lets pass between two statements."""
PATIENCE = 3.0
"""Seconds for the last statements after the last row."""


@dataclass
class Ended:
    """A session that is over: what an audit needs of it. `prompt` tokens of `tokens` were given, the rest made by the last stage."""

    located: Located
    precision: str
    tokens: list[int]
    prompt: int
    sampling: Sampling
    heard: Heard


@dataclass(frozen=True)
class StageVerdict:
    """What an audit found. `wrong` names who stood alone; None: nobody is blamed, and `why` says so."""

    difference: Difference | None
    asked: tuple[PeerId, ...]
    wrong: PeerId | None
    why: str
    silent: tuple[PeerId, ...] = ()
    """Who said less than half of what it computed: nothing can be held against its rows."""
    evidence: tuple[tuple[bytes, ...], ...] = field(default=(), repr=False)


class StageAuditor:
    def __init__(
        self,
        network: Network,
        swarm: Swarm,
        router: Router,
        steps: Steps,
        server: StageServer,
        told: Callable[[str], None] = lambda verdict: None,
        rng: Random | None = None,
        part: float | None = None,
    ) -> None:
        self._network, self._swarm, self._router = network, swarm, router
        self._steps, self._server, self._told = steps, server, told
        self._rng = rng or Random(secrets.token_bytes(16))
        self._part = AUDITED if part is None else part
        self._busy: asyncio.Task[None] | None = None
        self.evidence: deque[StageVerdict] = deque(maxlen=EVIDENCE_KEPT)
        """Of the last differences, blamed or not."""

    def listen(self, stages: list[StageSpec]) -> Heard:
        """For a session about to begin: whether it will be run again is drawn now, and told to nobody."""
        others = any(stage.peer != self._network.peer_id for stage in stages)
        return Heard(stages, secrets.token_bytes(PRINT_KEY), others and self._rng.random() < self._part)

    async def ended(self, session: Ended) -> None:
        """The session made its last token and its stages are still there: one that was drawn waits for their last words, and is run
        again in the background, one at a time.
        """
        if not session.heard.chosen or len(session.tokens) <= session.prompt or (self._busy is not None and not self._busy.done()):
            return
        await session.heard.until(min(len(session.tokens) - 1, MAX_ROWS), LAST_WORDS)
        self._busy = asyncio.create_task(self._run(session), name="audit of stages")

    async def close(self) -> None:
        if self._busy is not None:
            self._busy.cancel()
            await asyncio.gather(self._busy, return_exceptions=True)

    async def _run(self, session: Ended) -> None:
        try:
            verdict = await self.audit(session)
        except MfError as error:
            log.info("an audit of stages ended early: %s", error)
            return
        self._note(session, verdict)

    async def audit(self, session: Ended) -> StageVerdict:
        """Runs the session again elsewhere, and a third time where the two part."""
        run = session.heard
        others = self._others(session, {PeerId(stage.peer) for stage in run.stages})
        again = self._elsewhere(session, others)
        if all(one.peer == two.peer for one, two in zip(run.stages, again, strict=True)):
            return StageVerdict(None, (), None, "nobody else may be asked")
        if self._hand_fed(session):
            return StageVerdict(None, (), None, "the first stage was given other tokens than this node: by whom can't be told")
        second = await self._again(session, again)
        found = parting(run.rows, second.rows, session.precision)
        asked = (PeerId(stage.peer) for stage in again)
        if found is None or run.stages[found.index].peer == again[found.index].peer:
            why = "the two agree" if found is None else "one node differs from itself"
            return StageVerdict(found, tuple(asked), None, why, _silent(session))
        return await self._decide(session, second, found, others)

    async def _decide(self, session: Ended, second: Heard, found: Difference, others: list[PeerId]) -> StageVerdict:
        run, index = session.heard, found.index
        pair = PeerId(run.stages[index].peer), PeerId(second.stages[index].peer)
        evidence: tuple[tuple[bytes, ...], ...] = (tuple(run.envelopes[index]), tuple(second.envelopes[index]))
        if found.parting is Parting.HANDOVER:
            return StageVerdict(found, pair, None, found.parting.value, evidence=evidence)
        if has_experts(session.located):
            return StageVerdict(found, pair, None, "a model with experts: honest machines differ like this", evidence=evidence)
        rest = [stage for at, stage in enumerate(second.stages) if at != index]
        spec = self._another(session, run.stages[index], [peer for peer in others if peer not in pair], rest)
        if spec is None:
            return StageVerdict(found, pair, None, "there is no third to decide", evidence=evidence)
        third = await self._again(session, [*second.stages[:index], spec, *second.stages[index + 1 :]])
        wrong = third_says((run.rows[index], second.rows[index]), third.rows[index], index, found.parting, session.precision)
        asked, evidence = (*pair, PeerId(spec.peer)), (*evidence, tuple(third.envelopes[index]))
        if wrong is None:
            return StageVerdict(found, asked, None, "a third agrees with neither of the two", evidence=evidence)
        return StageVerdict(found, asked, pair[wrong], found.parting.value, evidence=evidence)

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
        tokens = session.tokens[: MAX_ROWS + 1]
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
            check=Checked(session.prompt, tokens[session.prompt :]) if checkable(session.sampling) else None,
        )
        async with Pipeline(self._network, self._steps, self._server, request) as pipeline:
            async for _token in pipeline.run():
                break
            await heard.until(len(tokens) - 1, PATIENCE)
        return heard

    def _note(self, session: Ended, verdict: StageVerdict) -> None:
        self._told(_word(verdict))
        if verdict.silent:
            log.info(
                "stages that sign nothing can't be audited", extra={"event": "stages_silent", "fields": {"peers": list(verdict.silent)}}
            )
        if verdict.difference is None:
            return
        self.evidence.append(verdict)
        stage = session.heard.stages[verdict.difference.index]
        layers = f"layers {stage.first}..{stage.end} of {model_text(session.located.model)}"
        fields: dict[str, Any] = {"stage": layers, "asked": list(verdict.asked), "wrong": verdict.wrong, "why": verdict.why}
        log.warning("two runs of %s part: %s", layers, verdict.why, extra={"event": "stage_audit", "fields": fields})
        if verdict.wrong is not None and verdict.wrong != self._network.peer_id:
            self._swarm.blame(verdict.wrong, layers, verdict.why)


def _silent(session: Ended) -> tuple[PeerId, ...]:
    wanted = min(len(session.tokens) - 1, MAX_ROWS) / 2
    heard = session.heard
    return tuple(PeerId(stage.peer) for stage, rows in zip(heard.stages, heard.rows, strict=True) if len(rows.inputs) < wanted)


def _word(verdict: StageVerdict) -> str:
    if verdict.wrong is not None:
        return "wrong"
    if verdict.difference is not None:
        return "undecided"
    return "silent" if verdict.silent else "agreed" if verdict.asked else "nobody"


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
