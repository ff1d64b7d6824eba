"""The entry side of a pipeline: open a session on every stage, send the prompt, take the tokens, notice who is lost.

The stages pass hidden states among themselves; the last one samples and sends the token to the entry and to the first stage, so the
entry sees one message per token. A stage is lost when its session stream ends, when it says "failed", or when it is silent
longer than SILENCE although it should say "alive" twice a second: then `StageLost` names it and the caller plans again,
replaying from the tokens it has. A stage on this node is served through the same code over an in-process pair of streams.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from node.local_stream import stream_pair
from node.network.interface import Network, Stream
from node.serve_stage import StageServer
from node.steps import Steps
from protocol.errors import MfError, Unavailable, error_from_wire
from protocol.framing import pack, unpack
from protocol.ids import ModelId, PeerId
from protocol.messages import SESSION_PROTOCOL, OpenSession, Sampling, SessionEvent, StageSpec, StepHead, TokenLogprob

log = logging.getLogger(__name__)
SILENCE = 1.6
OPEN_TIMEOUT = 1.5
LOAD_TIMEOUT = 300.0
STEP_TIMEOUT = 120.0


class StageLost(Unavailable):
    """A stage of the running pipeline can't go on; `peer` names it, `cause` is what it said itself, if it did."""

    code = "stage_lost"

    def __init__(self, peer: PeerId, why: str, cause: MfError | None = None) -> None:
        super().__init__(f"stage at {peer}: {why}", details={"peer": peer})
        self.peer = peer
        self.cause = cause


@dataclass(frozen=True)
class PipelineRequest:
    """`tokens` are all there are so far (prompt and replayed `reply`); `new_max` more may be made."""

    model: ModelId
    stages: list[StageSpec]
    tokens: list[int]
    new_max: int
    stop_tokens: list[int]
    sampling: Sampling
    precision: str
    epoch: int
    reply: list[int] = field(default_factory=list)


@dataclass
class Sampled:
    """One token; `finish` stop|length on the last."""

    token: int
    finish: str | None
    logprobs: list[TokenLogprob] | None = None


@dataclass
class Link:
    """The entry's view of one stage."""

    spec: StageSpec
    stream: Stream
    heard: float
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    timings: dict[str, float] = field(default_factory=dict)


class Pipeline:
    """One run over one route; use as an async context manager, then iterate `run()`."""

    def __init__(self, network: Network, steps: Steps, server: StageServer, request: PipelineRequest) -> None:
        self._network = network
        self._steps = steps
        self._server = server
        self._request = request
        self._session = secrets.token_bytes(16)
        self._tokens: asyncio.Queue[Sampled] = asyncio.Queue()
        self._links: list[Link] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._lost: asyncio.Future[StageLost] = asyncio.get_running_loop().create_future()
        self.timings: dict[str, float] = {}

    async def __aenter__(self) -> Pipeline:
        self._steps.listen(self._session, self._take)
        opening = [asyncio.create_task(self._open(index), name="open stage") for index in range(len(self._request.stages))]
        self._tasks += opening
        try:
            await asyncio.gather(*opening)
            await self._all_ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._steps.forget(self._session, self._take)
        for link in self._links:
            link.stream.reset()
        for task in self._tasks:
            task.cancel()
        # a stage still being opened is given up too: its stream would keep a session alive that nobody reads
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._lost.done():
            self._lost.cancel()

    async def run(self) -> AsyncGenerator[Sampled, None]:
        """Tokens as they come; raises `StageLost`."""
        request, first = self._request, PeerId(self._request.stages[0].peer)
        head = StepHead(session=self._session, epoch=request.epoch, position=0, kind="tokens", stage=0)
        raw = b"".join(token.to_bytes(4, "little", signed=True) for token in request.tokens)
        try:
            await self._steps.send(first, head, raw)
        except MfError as error:
            raise StageLost(first, error.message) from error
        while True:
            sampled = await self._or_lost(self._tokens.get(), STEP_TIMEOUT, "no token")
            yield sampled
            if sampled.finish is not None:
                return

    async def _open(self, index: int) -> None:
        request, spec = self._request, self._request.stages[index]
        opening = OpenSession(
            session=self._session,
            epoch=request.epoch,
            model=request.model,
            stages=request.stages,
            index=index,
            entry=self._network.peer_id,
            tokens_max=len(request.tokens) + request.new_max,
            new_max=request.new_max,
            stop_tokens=request.stop_tokens,
            sampling=request.sampling,
            precision=request.precision,
            reply=request.reply or None if index == len(request.stages) - 1 else None,
        )
        peer = PeerId(spec.peer)
        if peer == self._network.peer_id:
            mine, theirs = stream_pair(peer, SESSION_PROTOCOL)
            stream: Stream = mine
            self._tasks.append(asyncio.create_task(self._server.serve(opening, theirs), name="own stage"))
        else:
            stream = await self._dial(peer, opening)
        link = Link(spec, stream, time.monotonic())
        self._links.append(link)
        self._tasks.append(asyncio.create_task(self._watch(link), name=f"watch {peer}"))

    async def _dial(self, peer: PeerId, opening: OpenSession) -> Stream:
        try:
            stream = await self._network.open(peer, SESSION_PROTOCOL, OPEN_TIMEOUT)
            try:
                await stream.send(pack(opening), OPEN_TIMEOUT)
            except BaseException:
                stream.reset()
                raise
        except MfError as error:
            raise StageLost(peer, error.message) from error
        return stream

    async def _all_ready(self) -> None:
        async def each_ready() -> None:
            for link in self._links:
                await link.ready.wait()

        await self._or_lost(each_ready(), LOAD_TIMEOUT, "not ready")
        for name in ("assemble", "load", "open"):
            self.timings[name] = max((link.timings.get(name, 0.0) for link in self._links), default=0.0)

    async def _watch(self, link: Link) -> None:
        """Takes in what a stage says; its silence, failure or end loses it."""
        peer = PeerId(link.spec.peer)
        while True:
            try:
                event = unpack(await link.stream.receive(SILENCE), SessionEvent, f"session event from {peer}")
            except MfError as error:
                self._lose(peer, error.message)
                return
            link.heard = time.monotonic()
            if event.kind == "failed":
                cause = error_from_wire(event.error or {})
                self._lose(peer, cause.message, cause)
                return
            if event.kind == "ready":
                link.timings = event.timings or {}
                link.ready.set()

    def _lose(self, peer: PeerId, why: str, cause: MfError | None = None) -> None:
        if not self._lost.done():
            self._lost.set_result(StageLost(peer, why, cause))

    async def _or_lost(self, work: Any, timeout: float, what: str) -> Any:
        """`work`'s result, unless a stage is lost or the deadline passes first."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._lost], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self._lost.done():
                raise self._lost.result()
            raise StageLost(self._slowest(), f"{what} within {timeout:.0f} s")
        finally:
            task.cancel()

    def _slowest(self) -> PeerId:
        return PeerId(min(self._links, key=lambda link: (link.ready.is_set(), link.heard)).spec.peer)

    async def _take(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        """A token from the last stage."""
        if head.kind != "token" or sender != self._request.stages[-1].peer or head.epoch != self._request.epoch:
            return
        self._tokens.put_nowait(Sampled(int.from_bytes(raw[:4], "little", signed=True), head.finish, head.logprobs))
