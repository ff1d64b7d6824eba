"""Ask: name -> model -> tokens -> plan -> pipeline -> text. A lost stage is replaced and the reply goes on.

What a loss costs is the pipeline's matter (node/pipeline.py); whom to avoid then is `Losses`', who takes over `ReplyRoutes`'. Here is the
patience: a reply that has begun isn't given up soon, and one whose stages have no room waits in line (node/stage_patience.py). The reply's
tokens are this node's replay log of last resort. The tokenizer runs in this node's own worker, so that a peer gets token ids, never text
it must trust or template; that worker's death too is got over (node/reply_text.py). Everything lives for the request and goes with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from node.echo import Echo, known_tokens
from node.gateway import Event, Finished, GenerationRequest, Piece, Planned, Queued, TextLogprob
from node.heard import Listening
from node.kept_prefixes import KeptPrefixes, Scope
from node.local_run import LocalRun
from node.locate import Located, Locator
from node.losses import Losses, is_full
from node.model_cost import StageCost
from node.model_kinds import check_generates
from node.network.interface import Network
from node.pipeline import Pipeline, PipelineRequest, Sampled, StageLost
from node.reply import Reply
from node.reply_routes import PATIENCE, PAUSE, ReplyRoutes
from node.reply_text import ReplyText, patiently
from node.route import Router
from node.serve_stage import StageServer
from node.stage_audit import StageAuditor, seeded
from node.stage_room import StageRoom
from node.standby import RENEW, StandBys
from node.steps import Steps
from node.swarm.interface import Swarm
from node.worker import Worker
from protocol import limits
from protocol.errors import BadInput, Busy, DeadlineExceeded, TooLarge
from protocol.ids import model_text
from protocol.layout import layer_count
from protocol.sampling_check import check_sampling
from runtime.expectation import Paces
from runtime.interface import SpelledToken
from runtime.routing import Plan
from runtime.stop_strings import StopStrings

log = logging.getLogger(__name__)
DEFAULT_MAX_TOKENS = 1_024
REPLACEMENTS = 6
"""Lost stages replaced without a new token before a reply fails; one that has begun gets `PATIENCE` in any case."""
SETTLED = 16
"""Tokens of a route after which stand-bys are made ready, and renewed from then on."""


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
        self._routes = ReplyRoutes(router, standbys)
        self._paces = paces
        self.auditor: StageAuditor | None = None
        """Runs some of the replies' sessions again; None: none."""
        self.prefixes: KeptPrefixes | None = None
        """What sessions left at stages; None: nothing is kept or asked for."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Planned, Pieces, Finished; closing the iterator ends the work on every stage."""
        deadline = asyncio.get_running_loop().time() + request.timeout
        reply = await _before(deadline, self._begin(request))
        stops, text = StopStrings(request.stop), ReplyText(self._worker, self._room, reply.located)
        echo = Echo(self._worker, self._room, reply.located, request, reply.prompt)
        try:
            echo.check()
            reply.plan = self._where_it_began(reply, await _before(deadline, self._routes.first(reply)))
            self._routes.chose(reply)
            if reply.plan.kind == "here":
                self._room.line.check()
            yield self._planned(reply, reply.plan)
            if request.echo and request.sampling.logprobs is None:
                yield await _before(deadline, echo.plain())
            async with aclosing(self._told_in_line(reply)) as tokens:
                while (sampled := await _before(deadline, _next(tokens))) is not None:
                    if isinstance(sampled, Queued):
                        yield sampled
                        continue
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
            self._routes.over(reply)
            await text.close()

    async def _begin(self, request: GenerationRequest) -> Reply:
        started = time.monotonic()
        check_sampling(request.sampling)
        _check_size(request)
        located = await self._locator.locate(self._swarm.resolve(request.model))
        check_generates(located.manifest.summary, model_text(located.model))
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

    def _planned(self, reply: Reply, plan: Plan) -> Planned:
        engine, located, precision = None, reply.located, reply.request.precision
        if plan.kind == "here":
            engine = self._room.engine(located, 0, layer_count(located.manifest), precision, reply.tokens_max).engine
        return Planned(model_text(located.model), plan.kind, self._told(plan), len(reply.prompt), engine, precision)

    # Routes

    def _where_it_began(self, reply: Reply, plan: Plan) -> Plan:
        """The route of an earlier reply that began alike, where it may still be taken: its stages may have kept what they computed."""
        if plan.kind == "here" or self.prefixes is None or _scores(reply):
            return plan
        found = self.prefixes.find(_scope(reply), reply.prompt, time.monotonic())
        if found is None:
            return plan
        force, stages = reply.request.force, list(found.stages)
        again = self._router.again(reply.located, stages, reply.tokens_max, reply.request.precision, force=force)
        if again is None:
            return plan
        self.prefixes.forget(found.session)
        reply.prefix = found
        return again

    async def _tokens(self, reply: Reply) -> AsyncGenerator[Sampled | Queued, None]:
        """Tokens of the reply, over as many routes as it takes: the worker here makes it whole, or a pipeline does."""
        reply.begin(asyncio.get_running_loop().time())
        while reply.finish is None:
            assert reply.plan is not None
            way: AsyncGenerator[Sampled | Queued, None] = self._here(reply) if reply.plan.kind == "here" else self._through(reply)
            async with aclosing(way) as tokens:
                async for sampled in tokens:
                    yield sampled

    def _told_in_line(self, reply: Reply) -> AsyncGenerator[Sampled | Queued, None]:
        tokens = self._tokens(reply)
        return reply.news.before_first(tokens) if reply.plan is not None and reply.plan.kind == "here" else tokens

    async def _here(self, reply: Reply) -> AsyncGenerator[Sampled, None]:
        """Until it ends or the worker is lost."""
        local = LocalRun(self._network.peer_id, self._room, self._worker, reply.located, reply.news.tell)
        try:
            async with aclosing(self._counted(reply, local.run(self._request(reply)))) as tokens:
                async for sampled in tokens:
                    reply.scores, reply.memory = reply.scores or local.scores, local.memory
                    yield sampled
        except StageLost as lost:
            if isinstance(lost.cause, Busy) and "position" in lost.cause.details:
                raise lost.cause from lost  # it has waited in line already
            await self._replace(reply, None, lost)
        finally:
            _add(reply.timings, local.timings)
            reply.reused = max(reply.reused, local.reused)
            reply.stages = local.stages(layer_count(reply.located.manifest))

    async def _through(self, reply: Reply) -> AsyncGenerator[Sampled | Queued, None]:
        """Until it ends or goes on here."""
        assert reply.plan is not None
        there = len(reply.prompt) + len(reply.made)
        listening = self.auditor.listen(reply.plan.stages, there) if self.auditor is not None else None
        async with Pipeline(self._network, self._steps, self._server, self._request(reply, listening), reply.news.tell) as pipeline:
            try:
                while reply.finish is None and reply.plan is not None and reply.plan.kind != "here":
                    async with aclosing(self._over_routes(reply, pipeline)) as route:
                        async for sampled in route:
                            yield sampled
            finally:
                _add(reply.timings, pipeline.times.timings())
                reply.stages = pipeline.times.stages(reply.plan.stages)
                self._keep(reply, pipeline)
                await self._listened(reply, listening, pipeline.reused)

    async def _over_routes(self, reply: Reply, pipeline: Pipeline) -> AsyncGenerator[Sampled | Queued, None]:
        """Until it ends or a stage is lost, and then planned anew."""
        assert reply.plan is not None
        try:
            patience = reply.patience.left(asyncio.get_running_loop().time())
            async with aclosing(reply.news.during(pipeline.reroute(reply.plan.stages, patience))) as positions:
                async for queued in positions:
                    yield queued
            _add(reply.timings, pipeline.timings)
            reply.pause.opened(asyncio.get_running_loop().time())
            async with aclosing(self._over_one_route(reply, pipeline)) as tokens:
                async for sampled in tokens:
                    reply.scores = reply.scores or pipeline.scores
                    yield sampled
        except StageLost as lost:
            await self._replace(reply, pipeline, lost)

    def _keep(self, reply: Reply, pipeline: Pipeline) -> None:
        """For the next turn: what the stages have, and which tokens that was."""
        reply.reused = max(reply.reused, pipeline.reused)
        if self.prefixes is not None and (left := pipeline.left()) is not None:
            session, stages, tokens = left
            self.prefixes.keep(_scope(reply), session, stages, tokens, time.monotonic())

    async def _listened(self, reply: Reply, listening: Listening | None, behind: int) -> None:
        """However it ended, what its stages said may be looked at."""
        if self.auditor is not None and listening is not None:
            tokens, whole, precision = [*reply.prompt, *reply.made], reply.finish is not None, reply.request.precision
            await self.auditor.over(listening, reply.located, precision, reply.sampling, tokens, whole=whole, behind=behind)

    def _request(self, reply: Reply, listening: Listening | None = None) -> PipelineRequest:
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
            score=_scores(reply) and not reply.made,
            prints=listening.key if listening is not None else None,
            heard=listening,
            account=reply.request.account,
            reader=reply.request.reader,
            weight=reply.request.weight,
            priority=reply.request.priority,
            keep=self.prefixes is not None and not _scores(reply),
            prefix=reply.prefix if not reply.made else None,
        )

    async def _over_one_route(self, reply: Reply, pipeline: Pipeline) -> AsyncGenerator[Sampled, None]:
        with self._routes.running(reply):
            async with aclosing(self._counted(reply, pipeline.run())) as tokens:
                async for sampled in tokens:
                    if sampled.finish is not None:
                        self._note_paces(reply, pipeline)
                    yield sampled

    async def _counted(self, reply: Reply, run: AsyncGenerator[Sampled, None]) -> AsyncGenerator[Sampled, None]:
        since, due = 0, 0.0
        async with aclosing(run):
            async for sampled in run:
                reply.timings.setdefault("first_token", time.monotonic() - reply.started)
                reply.made.append(sampled.token)
                reply.finish, reply.fruitless, since = sampled.finish, 0, since + 1
                reply.moved = asyncio.get_running_loop().time()
                reply.patience.moved()
                if (paused := reply.pause.end(reply.moved)) is not None:
                    _log_pause(reply, paused)
                if since >= SETTLED and reply.moved >= due and sampled.finish is None:
                    due = reply.moved + RENEW
                    self._routes.prepare(reply)
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
        reply.replaced, full = reply.replaced + 1, is_full(lost)
        _log(reply, lost)
        reply.pause.lost(asyncio.get_running_loop().time())
        if isinstance(lost.cause, BadInput) and not reply.made:
            raise lost.cause
        now = asyncio.get_running_loop().time()
        if full:
            await asyncio.sleep(reply.patience.refused(lost, now))
        else:
            reply.fruitless += 1
            if reply.fruitless > REPLACEMENTS and not (reply.made and now - reply.moved <= PATIENCE):
                raise lost.cause or lost
        guilty = reply.losses.note(lost, asyncio.get_running_loop().time())
        if guilty is None:
            if pipeline is not None:
                pipeline.start_over()
        elif guilty != self._network.peer_id and lost.cause is None and lost.accuser is None and not lost.leaving:
            self._swarm.suspect(guilty, lost.message)
        if guilty == self._network.peer_id and not full:
            await asyncio.sleep(PAUSE * min(reply.fruitless, 4))  # its worker takes a while to start
        reply.plan = await self._routes.after(reply, lost, {lost.peer} if guilty is not None else set())
        self._routes.chose(reply)
        reply.pause.planned(asyncio.get_running_loop().time())

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
            memory=reply.memory if reply.plan.kind == "here" and not reply.replaced else None,
            stages=tuple(reply.stages),
            reused=reply.reused,
        )


def _log(reply: Reply, lost: StageLost) -> None:
    fields = {"peer": lost.peer, "reason": lost.message, "replaced": reply.replaced, "accuser": lost.accuser}
    if is_full(lost):
        log.info("a stage has no room: %s", lost, extra={"event": "stage_full", "fields": fields})
    else:
        log.warning("a stage was lost: %s", lost, extra={"event": "stage_lost", "fields": fields})


def _log_pause(reply: Reply, spent: dict[str, float]) -> None:
    fields = {"seconds": round(sum(spent.values()), 3), "tokens": len(reply.made), **{name: round(part, 3) for name, part in spent.items()}}
    log.info("the reply goes on after %.1f s", sum(spent.values()), extra={"event": "reply_goes_on", "fields": fields})


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
    shown = await text.feed(part, wait=sampled.logprobs is not None) if part else ""
    return shown, _spelled(await text.spell(sampled.logprobs)) if part and sampled.logprobs is not None else ()


def _spelled(token: list[SpelledToken] | None) -> tuple[TextLogprob, ...]:
    if not token:
        return ()
    chosen, *top = token
    return (TextLogprob(chosen.text, chosen.raw, chosen.logprob, tuple((one.text, one.raw, one.logprob) for one in top)),)


def _scores(reply: Reply) -> bool:
    """Whether the prompt's own tokens get logarithms: then all of it has to be computed."""
    return reply.request.echo and reply.request.sampling.logprobs is not None


def _scope(reply: Reply) -> Scope:
    return bytes(reply.located.model), reply.request.precision, reply.request.reader


def _add(timings: dict[str, float], more: dict[str, float]) -> None:
    for name, seconds in more.items():
        timings[name] = timings.get(name, 0.0) + seconds


async def _next(tokens: AsyncIterator[Sampled | Queued]) -> Sampled | Queued | None:
    return await anext(tokens, None)


async def _before(deadline: float, work: Any) -> Any:
    """`work`'s result, or `DeadlineExceeded` once the request's own time is up."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise DeadlineExceeded("the reply wasn't finished within the request's timeout", hint="raise timeout_seconds") from None
