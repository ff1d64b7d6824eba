"""Ask: name -> model -> tokens -> plan -> pipeline -> text. A lost stage is replaced and the reply goes on.

What a loss costs is the pipeline's matter (node/pipeline.py); whom to avoid then is `Losses`', who takes over the router's. Here is the
patience: a reply that has begun waits for a route as long as somebody may come back. The reply's tokens are this node's replay log of last
resort. The tokenizer runs in this node's own worker, so that a peer gets token ids, never text it must trust or template; that worker's
death too is got over (node/reply_text.py). Everything lives for the request and goes with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from node.echo import Echo, known_tokens
from node.gateway import Event, Finished, GenerationRequest, Piece, Planned, TextLogprob
from node.heard import Heard
from node.local_run import LocalRun
from node.locate import Located, Locator
from node.losses import Losses, is_full
from node.model_cost import StageCost
from node.network.interface import Network
from node.pipeline import Pipeline, PipelineRequest, Sampled, StageLost
from node.reply_text import ReplyText, patiently
from node.route import Router
from node.serve_stage import StageServer
from node.stage_audit import Ended, StageAuditor, seeded
from node.stage_room import StageRoom
from node.standby import StandBys
from node.steps import Steps
from node.swarm.interface import Swarm
from node.worker import Worker
from protocol import limits
from protocol.errors import BadInput, Busy, Conflict, DeadlineExceeded, TooLarge, Unavailable
from protocol.ids import ModelId, PeerId, model_text
from protocol.layout import layer_count
from protocol.messages import Sampling, StageSpec, TokenLogprob
from protocol.sampling_check import check_sampling
from runtime.expectation import Paces
from runtime.interface import SpelledToken
from runtime.routing import Plan
from runtime.stop_strings import StopStrings

log = logging.getLogger(__name__)
DEFAULT_MAX_TOKENS = 1_024
REPLACEMENTS = 6
"""Lost stages replaced without a new token before a reply fails; one that has begun gets `PATIENCE` in any case."""
PATIENCE = 20.0
"""Seconds that a reply waits for a route when there is none for the moment."""
PAUSE = 0.25
SETTLED = 16
"""Tokens after which stand-bys are made ready."""


@dataclass
class Reply:
    """One reply in the making."""

    request: GenerationRequest
    located: Located
    eos: list[int]
    prompt: list[int]
    new_max: int
    started: float
    losses: Losses
    made: list[int] = field(default_factory=list)
    finish: str | None = None
    replaced: int = 0
    fruitless: int = 0
    moved: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    plan: Plan | None = None
    scores: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """Of the prompt's tokens, where they are echoed with their logarithms."""
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def tokens_max(self) -> int:
        return len(self.prompt) + self.new_max


class Generator:
    def __init__(
        self,
        network: Network,
        swarm: Swarm,
        locator: Locator,
        router: Router,
        room: StageRoom,
        worker: Worker,
        steps: Steps,
        server: StageServer,
        standbys: StandBys | None = None,
        paces: Paces | None = None,
    ) -> None:
        self._network = network
        self._swarm = swarm
        self._locator = locator
        self._router = router
        self._room = room
        self._worker = worker
        self._steps = steps
        self._server = server
        self._standbys = standbys
        self._running: list[tuple[ModelId, StageSpec]] = []
        self._paces = paces
        self.auditor: StageAuditor | None = None
        """Runs some of the replies' sessions again; None: none."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Planned, Pieces, Finished; closing the iterator ends the work on every stage."""
        deadline = asyncio.get_running_loop().time() + request.timeout
        reply = await _before(deadline, self._begin(request))
        stops, text = StopStrings(request.stop), ReplyText(self._worker, self._room, reply.located)
        echo = Echo(self._worker, self._room, reply.located, request, reply.prompt)
        try:
            echo.check()
            reply.plan = await _before(deadline, self._first_plan(reply))
            if reply.plan.kind == "here":
                self._room.line.check()
            yield Planned(model_text(reply.located.model), reply.plan.kind, self._told(reply.plan), len(reply.prompt), self._engine(reply))
            if request.echo and request.sampling.logprobs is None:
                yield await _before(deadline, echo.plain())
            async with aclosing(self._tokens(reply)) as tokens:
                while (sampled := await _before(deadline, _next(tokens))) is not None:
                    if echo.due:
                        yield await _before(deadline, echo.scored(reply.scores))
                    shown, logprobs = await _before(deadline, _shown(text, sampled))
                    yield Piece(stops.feed(shown), len(reply.made), logprobs)
                    if stops.found:
                        reply.finish = "stop"
                        break
            tail = stops.feed(await text.feed([], last=True)) + stops.flush()
            if tail:
                yield Piece(tail, len(reply.made))
            yield self._finished(reply)
        finally:
            await text.close()

    async def _begin(self, request: GenerationRequest) -> Reply:
        started = time.monotonic()
        check_sampling(request.sampling)
        _check_size(request)
        located = await self._locator.locate(self._swarm.resolve(request.model))
        text = await patiently(self._worker, lambda: self._room.text(located))
        prompt = await self._encode(request, located)
        context = text.context or located.manifest.summary.context
        new_max = request.max_tokens or DEFAULT_MAX_TOKENS
        if context is not None:
            if len(prompt) >= context:
                raise BadInput(f"the prompt has {len(prompt)} tokens, the model takes {context}", details={"context": context})
            new_max = min(new_max, context - len(prompt))
        reply = Reply(
            request, located, text.eos, prompt, new_max, started, Losses(self._network.peer_id), sampling=seeded(request.sampling)
        )
        reply.timings["plan"] = time.monotonic() - started
        return reply

    async def _encode(self, request: GenerationRequest, located: Located) -> list[int]:
        async def anew() -> list[int]:
            await self._room.text(located)  # a worker that ended in the middle: a new one knows nothing yet
            return await self._encode_once(request, located)

        tokens = await patiently(self._worker, anew)
        if not tokens:
            raise BadInput("the prompt is empty")
        return tokens

    async def _encode_once(self, request: GenerationRequest, located: Located) -> list[int]:
        model = model_text(located.model)
        if request.tokens is not None:
            return known_tokens(request.tokens, located.manifest.summary.vocabulary)
        if request.messages is not None:
            return await self._worker.encode_chat(model, request.messages, continue_final=request.continue_final, tools=request.tools)
        return await self._worker.encode_text(model, request.text or "")

    def _engine(self, reply: Reply) -> str | None:
        """Of a reply that is made here."""
        if reply.plan is None or reply.plan.kind != "here":
            return None
        layers = layer_count(reply.located.manifest)
        return self._room.engine(reply.located, 0, layers, reply.request.precision, reply.tokens_max).engine

    # Routes

    async def _first_plan(self, reply: Reply) -> Plan:
        """At once, or when peers that lend compute don't answer just now, once they do."""
        end = asyncio.get_running_loop().time() + PATIENCE / 2
        while True:
            try:
                return self._router.plan(reply.located, reply.tokens_max, reply.request.precision, set(), force=reply.request.force)
            except Unavailable:
                if asyncio.get_running_loop().time() > end or not self._router.may_come_back():
                    raise
            await asyncio.sleep(PAUSE)

    async def _tokens(self, reply: Reply) -> AsyncGenerator[Sampled, None]:
        """Tokens of the reply, over as many routes as it takes: the worker here makes it whole, or a pipeline does."""
        reply.moved = asyncio.get_running_loop().time()
        while reply.finish is None:
            assert reply.plan is not None
            way = self._here(reply) if reply.plan.kind == "here" else self._through(reply)
            async with aclosing(way) as tokens:
                async for sampled in tokens:
                    yield sampled

    async def _here(self, reply: Reply) -> AsyncGenerator[Sampled, None]:
        """Until it ends or the worker is lost."""
        local = LocalRun(self._network.peer_id, self._room, self._worker, reply.located)
        try:
            async with aclosing(self._counted(reply, local.run(self._request(reply)))) as tokens:
                async for sampled in tokens:
                    reply.scores = reply.scores or local.scores
                    yield sampled
        except StageLost as lost:
            if isinstance(lost.cause, Busy) and "position" in lost.cause.details:
                raise lost.cause from lost  # it has waited in line already
            await self._replace(reply, None, lost)
        finally:
            _add(reply.timings, local.timings)

    async def _through(self, reply: Reply) -> AsyncGenerator[Sampled, None]:
        """Until it ends or goes on here."""
        assert reply.plan is not None
        heard = self.auditor.listen(reply.plan.stages) if self.auditor is not None else None
        async with Pipeline(self._network, self._steps, self._server, self._request(reply, heard)) as pipeline:
            while reply.finish is None and reply.plan is not None and reply.plan.kind != "here":
                try:
                    await pipeline.reroute(reply.plan.stages)
                    _add(reply.timings, pipeline.timings)
                    async with aclosing(self._over_one_route(reply, pipeline)) as tokens:
                        async for sampled in tokens:
                            reply.scores = reply.scores or pipeline.scores
                            yield sampled
                except StageLost as lost:
                    await self._replace(reply, pipeline, lost)
            if self.auditor is not None and heard is not None and not reply.replaced:
                made = reply.prompt + reply.made
                precision = reply.request.precision
                await self.auditor.ended(Ended(reply.located, precision, made, len(reply.prompt), reply.sampling, heard))

    def _request(self, reply: Reply, heard: Heard | None = None) -> PipelineRequest:
        """What is still to make of the reply."""
        assert reply.plan is not None
        return PipelineRequest(
            model=reply.located.model,
            stages=reply.plan.stages,
            tokens=[*reply.prompt, *reply.made],
            new_max=reply.new_max - len(reply.made),
            stop_tokens=reply.eos,
            sampling=reply.sampling,
            precision=reply.request.precision,
            vocabulary=reply.located.manifest.summary.vocabulary,
            prompt=len(reply.prompt),
            score=reply.request.echo and reply.request.sampling.logprobs is not None and not reply.made,
            prints=heard.key if heard is not None else None,
            heard=heard,
        )

    async def _over_one_route(self, reply: Reply, pipeline: Pipeline) -> AsyncGenerator[Sampled, None]:
        mine = [(reply.located.model, stage) for stage in reply.plan.stages] if reply.plan is not None else []
        self._running += mine
        try:
            async with aclosing(self._counted(reply, pipeline.run())) as tokens:
                async for sampled in tokens:
                    if sampled.finish is not None:
                        self._note_paces(reply, pipeline)
                    yield sampled
        finally:
            for stage in mine:
                self._running.remove(stage)

    async def _counted(self, reply: Reply, run: AsyncGenerator[Sampled, None]) -> AsyncGenerator[Sampled, None]:
        since = 0
        async with aclosing(run):
            async for sampled in run:
                reply.timings.setdefault("first_token", time.monotonic() - reply.started)
                reply.made.append(sampled.token)
                reply.finish, reply.fruitless, since = sampled.finish, 0, since + 1
                reply.moved = asyncio.get_running_loop().time()
                if since == SETTLED and self._standbys is not None and reply.plan is not None and sampled.finish is None:
                    avoid = reply.losses.avoided(asyncio.get_running_loop().time())
                    self._standbys.prepare(reply.located, reply.plan, reply.tokens_max, reply.request.precision, avoid)
                yield sampled

    def _note_paces(self, reply: Reply, pipeline: Pipeline) -> None:
        """What the stages told of their own speed, for `explain`."""
        if self._paces is None:
            return
        cost = StageCost(reply.located.manifest, reply.request.precision)
        for link in pipeline.links:
            self._paces.note(link.peer, cost.total(link.spec.first, link.spec.end, 0), *link.pace)

    async def _replace(self, reply: Reply, pipeline: Pipeline | None, lost: StageLost) -> None:
        """Plans again without the lost stage, or gives up with the reason."""
        reply.replaced, reply.fruitless = reply.replaced + 1, reply.fruitless + 1
        fields = {"peer": lost.peer, "reason": lost.message, "replaced": reply.replaced, "accuser": lost.accuser}
        log.warning("a stage was lost: %s", lost, extra={"event": "stage_lost", "fields": fields})
        if isinstance(lost.cause, BadInput) and not reply.made:
            raise lost.cause
        patient = asyncio.get_running_loop().time() - reply.moved <= PATIENCE
        if reply.fruitless > REPLACEMENTS and not (patient and (reply.made or is_full(lost))):
            raise lost.cause or lost
        guilty = reply.losses.note(lost, asyncio.get_running_loop().time())
        if guilty is None:
            if pipeline is not None:
                pipeline.start_over()
        elif guilty != self._network.peer_id and lost.cause is None and lost.accuser is None and not lost.leaving:
            self._swarm.suspect(guilty, lost.message)
        if guilty == self._network.peer_id:
            await asyncio.sleep(PAUSE * min(reply.fruitless, 4))  # its worker takes a while to start
        reply.plan = await self._next_plan(reply, lost)

    async def _next_plan(self, reply: Reply, lost: StageLost) -> Plan:
        """Without whom the reply avoids; waits for a route while somebody may come back, then asks whoever there is."""
        assert reply.plan is not None
        end, gone = asyncio.get_running_loop().time() + PATIENCE, {lost.peer} if not isinstance(lost.cause, Conflict) else set()
        while True:
            now = asyncio.get_running_loop().time()
            avoid = reply.losses.avoided(now)
            try:
                return self._plan_without(reply, gone, avoid)
            except Unavailable as error:
                if now > end or (not reply.made and not self._router.may_come_back() and not avoid):
                    raise Unavailable(f"{error.message}; before that, {lost.message}", hint=error.hint, details=error.details) from lost
            await asyncio.sleep(PAUSE)

    def _plan_without(self, reply: Reply, gone: set[PeerId], avoid: set[PeerId]) -> Plan:
        assert reply.plan is not None
        precision = reply.request.precision
        if not reply.made:
            return self._router.plan(reply.located, reply.tokens_max, precision, avoid, force=reply.request.force)
        ready = self._standbys.prepared(reply.located.model, precision) if self._standbys is not None else []
        running = [spec for model, spec in self._running if model == reply.located.model]
        return self._router.replace(reply.located, reply.plan, gone, reply.tokens_max, precision, avoid, ready, running)

    def _told(self, plan: Plan) -> list[dict[str, Any]]:
        me = self._network.peer_id
        return [{"peer": stage.peer, "first": stage.first, "end": stage.end, "here": stage.peer == me} for stage in plan.stages]

    def _finished(self, reply: Reply) -> Finished:
        assert reply.plan is not None
        reply.timings["total"] = time.monotonic() - reply.started
        fields = {"tokens": len(reply.made), "kind": reply.plan.kind, "stages": len(reply.plan.stages), "replaced": reply.replaced}
        log.info("reply finished", extra={"event": "reply_finished", "fields": fields})
        return Finished(
            reason=reply.finish or "stop",
            prompt_tokens=len(reply.prompt),
            completion_tokens=len(reply.made),
            route=self._told(reply.plan),
            timings={name: round(seconds, 6) for name, seconds in reply.timings.items()},
            replaced=reply.replaced,
        )


def _check_size(request: GenerationRequest) -> None:
    """Before anything is made of it: a tokenizer takes many times what it is given, in the worker that makes all replies."""
    size = len(msgspec.msgpack.encode([request.messages, request.tools, request.text]))
    if size > limits.MAX_PROMPT:
        raise TooLarge(f"the prompt has {size} bytes, {limits.MAX_PROMPT} are allowed", details={"bytes": limits.MAX_PROMPT})


async def _shown(text: ReplyText, sampled: Sampled) -> tuple[str, tuple[TextLogprob, ...]]:
    """The token's text and logarithms; the one that stops a reply isn't part of it."""
    part = [sampled.token] if sampled.finish != "stop" else []
    if sampled.text is not None:
        text.told(part, sampled.text)
        return sampled.text, _spelled(sampled.spelled)
    shown = await text.feed(part) if part else ""
    return shown, _spelled(await text.spell(sampled.logprobs)) if part and sampled.logprobs is not None else ()


def _spelled(token: list[SpelledToken] | None) -> tuple[TextLogprob, ...]:
    if not token:
        return ()
    chosen, *top = token
    return (TextLogprob(chosen.text, chosen.raw, chosen.logprob, tuple((one.text, one.raw, one.logprob) for one in top)),)


def _add(timings: dict[str, float], more: dict[str, float]) -> None:
    for name, seconds in more.items():
        timings[name] = timings.get(name, 0.0) + seconds


async def _next(tokens: AsyncIterator[Sampled]) -> Sampled | None:
    return await anext(tokens, None)


async def _before(deadline: float, work: Any) -> Any:
    """`work`'s result, or `DeadlineExceeded` once the request's own time is up."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise DeadlineExceeded("the reply wasn't finished within the request's timeout", hint="raise timeout_seconds") from None
