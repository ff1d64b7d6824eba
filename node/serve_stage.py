"""The stage side of a pipeline (`/mf/session/1`): load layers, keep a session's sequence, pass each step on.

An entry opens a stream per stage and session. While the stage loads it says "loading", then "ready"; from then on it says "alive"
twice a second, so that the entry tells a slow computation from a frozen node without guessing at speeds. Steps arrive
on other streams (node/steps.py), one queue per session: first come, first computed. The session ends when the entry ends its
stream, whatever the reason, and its room is free within one step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from itertools import pairwise

from node.locate import Locator
from node.network.interface import Network, Stream, StreamClosed
from node.stage_room import StageRoom
from node.steps import Steps
from node.worker import Worker
from protocol import limits
from protocol.errors import BadInput, Forbidden, MfError, PeerFault
from protocol.framing import pack, unpack
from protocol.ids import ModelId, PeerId
from protocol.messages import OpenSession, SessionEvent, StageSpec, StepHead
from runtime.interface import OpenSequence, Step, Stepped
from runtime.memory import TRAVELS

log = logging.getLogger(__name__)
HEARTBEAT = 0.5
_QUEUE = 64
WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Incoming:
    head: StepHead
    raw: memoryview


class StageServer:
    def __init__(self, network: Network, steps: Steps, locator: Locator, room: StageRoom, worker: Worker, lends_compute: bool) -> None:
        self._network = network
        self._steps = steps
        self._locator = locator
        self._room = room
        self._worker = worker
        self._lends = lends_compute

    async def handle(self, stream: Stream) -> None:
        """One session of a remote entry."""
        try:
            request = unpack(await stream.receive(10.0), OpenSession, f"session from {stream.peer}")
            if request.entry != stream.peer:
                raise Forbidden("only a session's entry may open it")
            if not self._lends:
                raise Forbidden("this node lends no compute")
        except StreamClosed:
            return
        except MfError as error:
            await stream.send(pack(SessionEvent(kind="failed", error=error.to_wire())))
            return
        await self.serve(request, stream)

    async def serve(self, request: OpenSession, stream: Stream) -> None:
        """Runs the session until the entry's stream ends; a fault is told to the entry, then the session is over."""
        try:
            session = StageSession(self, request)
        except MfError as error:
            await _tell_failure(stream, error)
            return
        beat = asyncio.create_task(self._beat(stream, session))
        work = asyncio.create_task(session.run())
        gone = asyncio.create_task(_until_gone(stream))
        try:
            await asyncio.wait([work, gone, beat], return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not work.cancelled() and work.exception() is not None:
                await _tell_failure(stream, work.exception())
        finally:
            for task in (beat, work, gone):
                task.cancel()
            await asyncio.gather(beat, work, gone, return_exceptions=True)
            await stream.close()

    async def _beat(self, stream: Stream, session: StageSession) -> None:
        """ "loading" until ready, then "ready" once and "alive" ever after."""
        told = False
        while True:
            if session.ready.is_set() and not told:
                told = True
                await stream.send(pack(SessionEvent(kind="ready", timings=session.timings)))
            else:
                await stream.send(pack(SessionEvent(kind="alive" if told else "loading")))
            if told:
                await asyncio.sleep(HEARTBEAT)
            else:
                await _set_within(session.ready, HEARTBEAT)


class StageSession:
    """One session on one stage: a queue of steps, computed in order, each result passed on."""

    def __init__(self, server: StageServer, request: OpenSession) -> None:
        self._server = server
        self._request = request
        self._queue: asyncio.Queue[Incoming] = asyncio.Queue(_QUEUE)
        self.ready = asyncio.Event()
        self.timings: dict[str, float] = {}
        self._spec = _check_route(request, server._network.peer_id)
        self._last = request.index == len(request.stages) - 1
        self._made = 0
        # an entry that keeps both ends runs two stages of one session
        self._name = f"{request.session.hex()}.{request.index}"

    async def run(self) -> None:
        """Loads, then computes until cancelled."""
        request, server = self._request, self._server
        located = await server._locator.locate(ModelId(request.model))
        opening = OpenSequence(stage="", session=self._name, tokens_max=request.tokens_max, sampling=request.sampling)
        started = time.monotonic()
        async with server._room.sequence(located, self._spec.first, self._spec.end, request.precision, opening) as stage:
            self.timings = {**stage.timings, "open": time.monotonic() - started}
            server._steps.listen(request.session, self._take)
            try:
                self.ready.set()
                while True:
                    await self._compute(await self._queue.get())
            finally:
                server._steps.forget(request.session, self._take)

    async def _take(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        """A frame for this stage, from the one peer that may send it."""
        request = self._request
        if head.stage != request.index:
            return  # for the entry, or for another stage of the session on this node
        if head.epoch != request.epoch:
            raise PeerFault(f"{sender} sent a step of epoch {head.epoch} into epoch {request.epoch}")
        expected = {"tokens": request.entry, "token": request.stages[-1].peer, "hidden": request.stages[request.index - 1].peer}
        if sender != expected.get(head.kind) or (request.index == 0) == (head.kind == "hidden"):
            raise PeerFault(f"{sender} may not send {head.kind} to stage {request.index}")
        if head.finish is None:
            try:
                self._queue.put_nowait(Incoming(head, raw))
            except asyncio.QueueFull:
                raise PeerFault(f"{sender} sent more than {_QUEUE} steps ahead") from None

    async def _compute(self, incoming: Incoming) -> None:
        head, raw = incoming.head, incoming.raw
        step = Step(session=self._name, epoch=head.epoch, position=head.position, sample=self._last)
        if head.kind == "hidden":
            assert head.shape is not None  # parse_step checked it
            if head.dtype != TRAVELS[self._request.precision]:
                raise PeerFault(f"the stage before sent {head.dtype}, the session runs in {self._request.precision}")
            step.hidden, step.count = bytes(raw), head.shape[0]
        else:
            step.tokens = list(memoryview(raw).cast("i"))
            step.count = len(step.tokens)
        await self._pass_on(step, await self._server._worker.step(step))

    async def _pass_on(self, step: Step, done: Stepped) -> None:
        request, after = self._request, step.position + step.count
        head = StepHead(session=request.session, epoch=step.epoch, position=step.position, kind="hidden", stage=request.index + 1)
        if not self._last:
            assert done.hidden is not None
            head.dtype, head.shape = done.dtype, done.shape
            await self._server._steps.send(PeerId(request.stages[request.index + 1].peer), head, done.hidden)
            return
        assert done.token is not None
        self._made += 1
        head.kind, head.position, head.finish = "token", after, self._finish(done.token)
        raw = done.token.to_bytes(4, "little", signed=True)
        first = request.stages[0].peer
        head.stage = 0 if first == request.entry else None
        await self._server._steps.send(PeerId(request.entry), head, raw)
        if first != request.entry and head.finish is None:
            head.stage = 0
            await self._server._steps.send(PeerId(first), head, raw)

    def _finish(self, token: int) -> str | None:
        if token in self._request.stop_tokens:
            return "stop"
        return "length" if self._made >= self._request.new_max else None


def _check_route(request: OpenSession, me: PeerId) -> StageSpec:
    """The own stage, if the route makes sense: contiguous, this node at `index`, counts within limits."""
    stages = request.stages
    if len(request.session) != 16 or not 1 <= len(stages) <= limits.MAX_LAYERS or not 0 <= request.index < len(stages):
        raise BadInput("session: id of 16 bytes, 1 to 4096 stages, index among them")
    if stages[0].first != 0 or any(after.first != before.end for before, after in pairwise(stages)):
        raise BadInput("session: the stages' layers aren't contiguous from 0")
    if any(stage.end <= stage.first for stage in stages) or stages[request.index].peer != me:
        raise BadInput("session: an empty stage, or a stage number that isn't this node's")
    if not 0 < request.tokens_max <= 1 << 22 or not 0 < request.new_max <= request.tokens_max or len(request.stop_tokens) > 64:
        raise BadInput("session: tokens_max, new_max or stop_tokens out of range")
    if request.precision not in TRAVELS:
        raise BadInput(f"session: precision {request.precision[:16]!r}, {', '.join(TRAVELS)} are known")
    return stages[request.index]


async def _until_gone(stream: Stream) -> None:
    """Ends when the entry ends the stream; anything it says in between keeps the session."""
    while True:
        try:
            await stream.receive(3_600.0)
        except MfError:
            return


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _tell_failure(stream: Stream, error: BaseException | None) -> None:
    if not isinstance(error, MfError):
        log.error("a session failed", exc_info=error)
        error = MfError(f"the stage failed: {type(error).__name__}")
    try:
        await stream.send(pack(SessionEvent(kind="failed", error=error.to_wire())))
    except MfError as gone:
        log.info("the entry left before it could be told of a failure: %s", gone)
