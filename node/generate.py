"""Ask: name -> model -> tokens -> plan -> pipeline -> text. A lost stage is replaced and the reply goes on.

The reply's tokens are this node's replay log: after a loss the next route prefills prompt and tokens so far
under a new epoch, and the reader sees a pause, not an error. The tokenizer runs in this node's own worker, so that a peer gets
token ids, never text it must trust or template. Everything lives for the request and goes with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from node.gateway import Event, Finished, GenerationRequest, Piece, Planned, TextLogprob
from node.locate import Located, Locator
from node.network.interface import Network
from node.pipeline import Pipeline, PipelineRequest, Sampled, StageLost
from node.route import Router
from node.serve_stage import StageServer
from node.stage_room import StageRoom
from node.steps import Steps
from node.swarm.interface import Swarm
from node.worker import Worker
from protocol.errors import BadInput, DeadlineExceeded, MfError, Unavailable
from protocol.ids import PeerId, model_text
from protocol.sampling_check import check_sampling
from runtime.interface import SpelledToken, TextLoaded
from runtime.routing import Plan
from runtime.stop_strings import StopStrings

log = logging.getLogger(__name__)
DEFAULT_MAX_TOKENS = 1_024
REPLACEMENTS = 6
"""Lost stages replaced in one reply before it fails."""


@dataclass
class Reply:
    """One reply in the making."""

    request: GenerationRequest
    located: Located
    text: TextLoaded
    prompt: list[int]
    new_max: int
    started: float
    made: list[int] = field(default_factory=list)
    avoid: set[PeerId] = field(default_factory=set)
    finish: str | None = None
    replaced: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    plan: Plan | None = None


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
    ) -> None:
        self._network = network
        self._swarm = swarm
        self._locator = locator
        self._router = router
        self._room = room
        self._worker = worker
        self._steps = steps
        self._server = server

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Planned, Pieces, Finished; closing the iterator ends the work on every stage."""
        deadline = asyncio.get_running_loop().time() + request.timeout
        reply = await _before(deadline, self._begin(request))
        stream = uuid.uuid4().hex
        stops, open_stream = StopStrings(request.stop), True
        try:
            await _before(deadline, self._worker.open_text(model_text(reply.located.model), stream))
            reply.plan = self._plan(reply)
            yield Planned(model_text(reply.located.model), reply.plan.kind, self._told(reply.plan), len(reply.prompt))
            async with aclosing(self._tokens(reply)) as tokens:
                while (sampled := await _before(deadline, _next(tokens))) is not None:
                    text, logprobs = await self._spelled(stream, sampled)
                    yield Piece(stops.feed(text), len(reply.made), logprobs)
                    if stops.found:
                        reply.finish = "stop"
                        break
            flushed, open_stream = await self._worker.decode_text(stream, [], last=True), False
            tail = stops.feed(flushed) + stops.flush()
            if tail:
                yield Piece(tail, len(reply.made))
            yield self._finished(reply)
        finally:
            if open_stream:
                await self._close_text(stream)

    async def _begin(self, request: GenerationRequest) -> Reply:
        started = time.monotonic()
        check_sampling(request.sampling)
        located = await self._locator.locate(self._swarm.resolve(request.model))
        text = await self._room.text(located)
        prompt = await self._encode(request, located)
        context = text.context or located.manifest.summary.context
        new_max = request.max_tokens or DEFAULT_MAX_TOKENS
        if context is not None:
            if len(prompt) >= context:
                raise BadInput(f"the prompt has {len(prompt)} tokens, the model takes {context}", details={"context": context})
            new_max = min(new_max, context - len(prompt))
        reply = Reply(request, located, text, prompt, new_max, started)
        reply.timings["plan"] = time.monotonic() - started
        return reply

    async def _encode(self, request: GenerationRequest, located: Located) -> list[int]:
        model = model_text(located.model)
        if request.messages is not None:
            tokens = await self._worker.encode_chat(model, request.messages, continue_final=request.continue_final, tools=request.tools)
        else:
            tokens = await self._worker.encode_text(model, request.text or "")
        if not tokens:
            raise BadInput("the prompt is empty")
        return tokens

    def _plan(self, reply: Reply) -> Plan:
        tokens_max = len(reply.prompt) + reply.new_max
        return self._router.plan(reply.located, tokens_max, reply.request.precision, reply.avoid)

    async def _spelled(self, stream: str, sampled: Sampled) -> tuple[str, tuple[TextLogprob, ...]]:
        if sampled.logprobs is None:
            return await self._worker.decode_text(stream, [sampled.token]), ()
        text = await self._worker.spell_text(stream, [sampled.token], [sampled.logprobs])
        return text.text, tuple(_told(one) for one in text.logprobs or ())

    async def _tokens(self, reply: Reply) -> AsyncGenerator[Sampled, None]:
        """Tokens of the reply (end tokens left out), over as many routes as it takes."""
        while reply.finish is None:
            try:
                async with aclosing(self._run_route(reply)) as tokens:
                    async for token in tokens:
                        yield token
            except StageLost as lost:
                await self._replace(reply, lost)

    async def _run_route(self, reply: Reply) -> AsyncGenerator[Sampled, None]:
        assert reply.plan is not None
        request = PipelineRequest(
            model=reply.located.model,
            stages=reply.plan.stages,
            tokens=reply.prompt + reply.made,
            new_max=reply.new_max - len(reply.made),
            stop_tokens=reply.text.eos,
            sampling=reply.request.sampling,
            precision=reply.request.precision,
            epoch=reply.replaced,
            reply=list(reply.made),
        )
        async with Pipeline(self._network, self._steps, self._server, request) as pipeline:
            for name, seconds in pipeline.timings.items():
                reply.timings[name] = reply.timings.get(name, 0.0) + seconds
            async with aclosing(pipeline.run()) as run:
                async for sampled in run:
                    reply.timings.setdefault("first_token", time.monotonic() - reply.started)
                    reply.made.append(sampled.token)
                    reply.finish = sampled.finish
                    if sampled.finish != "stop":
                        yield sampled

    async def _replace(self, reply: Reply, lost: StageLost) -> None:
        """Plans again without the lost stage, or gives up with the reason."""
        reply.replaced += 1
        fields = {"peer": lost.peer, "reason": lost.message, "replaced": reply.replaced}
        log.warning("a stage was lost: %s", lost, extra={"event": "stage_lost", "fields": fields})
        if isinstance(lost.cause, BadInput) or reply.replaced > REPLACEMENTS:
            raise lost.cause or lost
        if lost.peer == self._network.peer_id:
            if reply.replaced > 2:
                raise lost.cause or lost
        else:
            reply.avoid.add(lost.peer)
            if lost.cause is None:
                self._swarm.suspect(lost.peer, lost.message)
        try:
            reply.plan = self._plan(reply)
        except Unavailable as error:
            raise Unavailable(f"{error.message}; before that, {lost.message}", hint=error.hint, details=error.details) from lost

    async def _close_text(self, stream: str) -> None:
        """Lets the worker forget a decoder that won't be read to its end."""
        if not self._worker.running:
            return
        try:
            await self._worker.decode_text(stream, [], last=True)
        except MfError as error:
            log.debug("a text stream wasn't closed: %s", error)

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


def _told(spelled: list[SpelledToken]) -> TextLogprob:
    chosen, *top = spelled
    return TextLogprob(chosen.text, chosen.raw, chosen.logprob, tuple((one.text, one.raw, one.logprob) for one in top))


async def _next(tokens: AsyncIterator[Sampled]) -> Sampled | None:
    return await anext(tokens, None)


async def _before(deadline: float, work: Any) -> Any:
    """`work`'s result, or `DeadlineExceeded` once the request's own time is up."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise DeadlineExceeded("the reply wasn't finished within the request's timeout", hint="raise timeout_seconds") from None
