"""The entry side of a pipeline: open a session on every stage, send the prompt, take the tokens, replace who is lost.

The stages pass hidden states among themselves; the last one samples and sends the token to the entry and to the first stage, so the
entry sees one message per token. A prompt goes through in cuts of at most 256 positions, so that the second stage works on the first
cut while the first one works on the second; the entry sends a few ahead of what came out at the end, which bounds what waits anywhere.

Who is lost is found in three ways: its session stream (node/stage_link.py), another stage's blame, or a hop into which
something went and nothing came out while nobody computes. `run` then raises `StageLost`, and the caller plans and calls `reroute`:

    kept      stages with the same layers, alive and proven: they drop what lies beyond the last token and stay
    new       opened on the stand-by, from position 0
    sender    a kept stage before a new one sends again what it sent before; the entry does it for the first stage, with tokens

so that one stage's death costs one prefill of that stage alone. A token that was under way when the stage was lost still counts, and comes
first in the next `run`. When a kept stage can't go back (a recurrent state) or has given up its log, it fails with a conflict, and the
caller replaces everything. A stage on this node is served through the same code over an in-process pair of streams.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Container, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from node.kept_prefixes import Prefix
from node.local_stream import stream_pair
from node.network.interface import Network, Stream
from node.opening_order import held_while_waiting, turns
from node.prompt_scores import read_scores
from node.serve_stage import StageServer
from node.stage_link import SILENCE, StageLink, StageLost
from node.stage_times import RouteTimes
from node.step_log import CUT
from node.steps import Steps
from node.told_tokens import Asked, check_tokens
from node.traffic import note_stage
from protocol.errors import MfError, PeerFault
from protocol.framing import pack
from protocol.ids import ModelId, PeerId
from protocol.messages import (
    SESSION_PROTOCOL,
    Checked,
    Earlier,
    OpenSession,
    Reroute,
    Sampling,
    SessionEvent,
    StageSpec,
    StepHead,
    TokenLogprob,
)
from runtime.interface import SpelledToken

log = logging.getLogger(__name__)
OPEN_TIMEOUT = 1.5
LOAD_TIMEOUT = 300.0
STEP_TIMEOUT = 120.0
STALL = 2.5
"""Seconds without any progress, though nobody computes, after which a hop counts as broken."""
_LOOK = 0.5

__all__ = ["Pipeline", "PipelineRequest", "Sampled", "StageLost"]


class Listener(Protocol):
    def take(self, spec: StageSpec, session: bytes, envelopes: Iterable[bytes]) -> None:
        """Signed statements of that stage; raises what is wrong with them."""

    def rerouted(self, stages: list[StageSpec], tokens: list[int], kept: Container[StageSpec]) -> None:
        """The session begins, or goes on over other stages after these tokens; `kept` are those that stay as they are."""

    def resumed(self, begin: int) -> None:
        """The stages that stayed go on from row `begin` now, and say nothing more of what they computed beyond it before."""

    def begun(self, before: int) -> None:
        """All stages have so many rows from an earlier session, and say nothing of them."""


@dataclass(frozen=True)
class PipelineRequest:
    """`tokens` are all there are so far (prompt and replayed reply, `prompt` of them the prompt); `new_max` more may be made. `score`:
    the prompt's own tokens get logarithms too.

    `prints`, `heard`, `check`: as node/stage_audit.py has it. `keep`: the stages may keep what they compute for a later session; `prefix`:
    what they kept of an earlier one.
    """

    model: ModelId
    stages: list[StageSpec]
    tokens: list[int]
    new_max: int
    stop_tokens: list[int]
    sampling: Sampling
    precision: str
    vocabulary: int | None = None
    prompt: int = 0
    drafts: bool = True
    score: bool = False
    prints: bytes | None = None
    heard: Listener | None = None
    check: Checked | None = None
    account: str = ""
    reader: str = ""
    weight: float = 1.0
    priority: int = 0
    keep: bool = False
    prefix: Prefix | None = None


@dataclass
class Sampled:
    """One token; `finish` stop|length on the last."""

    token: int
    finish: str | None
    logprobs: list[TokenLogprob] | None = None
    text: str | None = None
    """What it adds to the reply, where its maker tells."""
    spelled: list[SpelledToken] | None = None


class Pipeline:
    """One reply's way through a route that may change; use as an async context manager, then iterate `run()`."""

    def __init__(
        self,
        network: Network,
        steps: Steps,
        server: StageServer,
        request: PipelineRequest,
        queued: Callable[[int], None] = lambda position: None,
    ) -> None:
        """`queued` hears the place in line while a stage has no room."""
        self._queued = queued
        self._network = network
        self._steps = steps
        self._server = server
        self._request = request
        self._session = secrets.token_bytes(16)
        self._tokens = list(request.tokens)
        self._end = len(request.tokens) + request.new_max
        self._asked = Asked(request.stop_tokens, self._end, request.vocabulary, request.sampling)
        self._stages = request.stages
        self.links: list[StageLink] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._inbox: deque[Sampled] = deque()
        self._wake = asyncio.Event()
        self._lost: StageLost | None = None
        self._epoch = -1
        self._through = 0
        self._moved = asyncio.get_running_loop().time()
        self._stalls: Counter[PeerId] = Counter()
        self.timings: dict[str, float] = {}
        self.times = RouteTimes(lambda part, seconds: server.figures.observe("route", part, seconds))
        self.scores: dict[int, list[TokenLogprob]] = {}
        """Of the prompt's tokens by their place, where they are asked."""
        self.reused = 0
        """Positions of the prompt that every stage had from an earlier session."""

    async def __aenter__(self) -> Pipeline:
        self._steps.listen(self._session, self._take)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._steps.forget(self._session, self._take)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(link.close() for link in self.links), return_exceptions=True)
        # a stage still being opened is given up too: its stream would keep a session alive that nobody reads
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self) -> AsyncGenerator[Sampled, None]:
        """Tokens as they come, from where the last `run` ended; raises `StageLost`."""
        if self._epoch < 0:
            await self.reroute(self._request.stages)
        while True:
            sampled = await self._next()
            for link in self.links:
                link.proven = True
            self._stalls.clear()
            yield sampled
            if sampled.finish is not None:
                return

    async def reroute(self, stages: list[StageSpec], wait: float = 0.0) -> None:
        """Goes on over `stages`; those that are there already and whole stay as they are. Raises `StageLost` when one doesn't come up.

        `wait`: seconds that it may stay in line at stages without room, instead of being refused.
        """
        if self._inbox and self._inbox[-1].finish is not None:
            return  # its last token came while another route was looked for
        try:
            await self._reroute(stages, wait)
        except StageLost:
            # what was opened and runs nothing yet would keep its room while the caller looks for another way
            await asyncio.gather(*(link.close() for link in self.links if not link.proven), return_exceptions=True)
            raise

    async def _reroute(self, stages: list[StageSpec], wait: float) -> None:
        kept = {link.spec: link for link in self.links if link.spec in stages and link.proven and not link.dead}
        if wait:
            kept = held_while_waiting(kept, stages)
        leaving = [link for link in self.links if link not in kept.values()]
        self._epoch += 1
        self._lost, self._stages = None, stages
        self._moved, self._through = asyncio.get_running_loop().time(), 0
        begin = len(self._tokens) - 1 if kept else 0
        await asyncio.gather(*(link.close() for link in leaving), return_exceptions=True)
        if self._request.heard is not None:
            self._request.heard.rerouted(stages, self._tokens, kept)
        self.links = list(kept.values())
        end = self._moved + wait
        for turn in turns([index for index, spec in enumerate(stages) if spec not in kept], stages, in_turn=wait > 0):
            left = max(0.0, end - asyncio.get_running_loop().time()) if wait else 0.0
            await self._all(self._open(index, self._resume(kept, index, begin), left) for index in turn)
            self.links.sort(key=lambda link: link.spec.first)
            await self._or_lost(self._all(link.ready.wait() for link in self.links), LOAD_TIMEOUT + left, "not ready")
        fresh = [link.timings for link in self.links if link not in kept.values()]
        for name, told in (("assemble", "assemble"), ("load", "load"), ("open", "open"), ("queue", "line")):
            self.timings[name] = max((timings.get(told, 0.0) for timings in fresh), default=0.0)
        await self._tell_kept(kept, begin)
        self._moved = asyncio.get_running_loop().time()
        self.times.begin(self._moved)
        there = 0 if kept else min(link.held for link in self.links)
        self.reused = max(self.reused, there)
        if there and self._request.heard is not None:
            self._request.heard.begun(there)
        self._spawn(self._feed(begin if stages[0] in kept else there, max(begin, there)), "feed")

    def left(self) -> tuple[bytes, list[StageSpec], list[int]] | None:
        """The session, its stages and the tokens that all of them have computed; None where one hasn't, or may not keep it."""
        if not self._request.keep or not self.links or any(link.dead or not link.proven for link in self.links):
            return None
        return self._session, list(self._stages), self._tokens[:-1]

    def start_over(self) -> None:
        """The next `reroute` keeps no stage: one of them can't go back."""
        for link in self.links:
            link.proven = False

    def _resume(self, kept: dict[StageSpec, StageLink], index: int, begin: int) -> int:
        """Up to where the stage after this one needs nothing."""
        return begin if index + 1 < len(self._stages) and self._stages[index + 1] in kept else 0

    async def _tell_kept(self, kept: dict[StageSpec, StageLink], begin: int) -> None:
        if not kept:
            return
        for index, spec in enumerate(self._stages):
            if spec in kept:
                resume = self._resume(kept, index, begin) if index + 1 < len(self._stages) else begin
                await kept[spec].reroute(Reroute(epoch=self._epoch, stages=self._stages, index=index, position=begin, resume=resume))
        await self._or_lost(self._all(link.rerouted.wait() for link in kept.values()), SILENCE, "not rerouted")
        if self._request.heard is not None:
            self._request.heard.resumed(begin)

    async def _all(self, works: Any) -> None:
        """All of them; the first fault ends the others."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    # Opening

    async def _open(self, index: int, resume: int, wait: float) -> None:
        request, spec = self._request, self._stages[index]
        last, prefix = index == len(self._stages) - 1, self._prefix(spec)
        opening = OpenSession(
            session=self._session,
            epoch=self._epoch,
            model=request.model,
            stages=self._stages,
            index=index,
            entry=self._network.peer_id,
            tokens_max=self._end,
            new_max=self._end - len(self._tokens),
            stop_tokens=request.stop_tokens,
            sampling=request.sampling if last else Sampling(),  # it may tell of the text
            precision=request.precision,
            prints=request.prints,
            check=request.check if last else None,
            reply=(self._tokens[request.prompt :] or None) if last and request.prompt else None,
            resume=resume,
            drafts=request.drafts and request.sampling.logprobs is None,
            score=self._tokens if last and request.score and len(self._tokens) == len(request.tokens) else None,
            wait=wait,
            begun=0 < request.prompt < len(self._tokens),
            keep=request.keep,
            after=None if prefix is None else Earlier(prefix.session, prefix.positions),
            known=self._tokens[: prefix.positions] if prefix is not None and index == 0 else None,
        )
        if spec.peer == self._network.peer_id:
            mine, theirs = stream_pair(PeerId(spec.peer), SESSION_PROTOCOL)
            stream: Stream = mine
            self._spawn(self._server.serve(opening, theirs), "own stage")
        else:
            stream = await open_stage(self._network, opening)
        self.links.append(StageLink(spec, stream, self._lose, self._heard, prefix.positions if prefix is not None else 0))

    def _prefix(self, spec: StageSpec) -> Prefix | None:
        """Asked for once: what a stage has taken over, it doesn't have a second time."""
        prefix = self._request.prefix
        return prefix if prefix is not None and self._epoch == 0 and spec in prefix.stages else None

    def _heard(self, spec: StageSpec, event: SessionEvent) -> None:
        """What a stage says of itself beside how it is."""
        if event.line is not None:
            self._queued(max([event.line, *(link.line or 0 for link in self.links)]))
        if event.moved is not None:
            note_stage((spec.peer, spec.first, spec.end), event.moved)
        if event.kind == "alive" and event.timings:
            self._server.figures.peers.said(PeerId(spec.peer), event.timings, time.monotonic())
        if event.prints and self._request.heard is not None:
            self._request.heard.take(spec, self._session, event.prints)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # In

    async def _feed(self, start: int, begin: int) -> None:
        """The tokens from `start` on to the first stage, cut at `begin` too: what lies before needn't be passed on by all."""
        epoch, first, tokens = self._epoch, PeerId(self._stages[0].peer), list(self._tokens)
        ahead, sent = (len(self._stages) + 2) * CUT, start
        for cut in cuts(start, begin, len(tokens)):
            while sent - max(self._through, start) > ahead:
                self._wake.clear()
                await self._wake.wait()
            if epoch != self._epoch:
                return
            head = StepHead(session=self._session, epoch=epoch, position=cut.start, kind="tokens", stage=0, more=cut.stop < len(tokens))
            try:
                await self._steps.send(first, head, struct.pack(f"<{len(cut)}i", *tokens[cut.start : cut.stop]))
            except MfError as error:
                self._lose(StageLost(first, error.message))
                return
            sent = cut.stop

    def _take(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        """A token from the last stage, or a stage's word that a cut went as far as it had to."""
        if head.epoch != self._epoch:
            return
        if head.kind == "cut" and any(sender == stage.peer for stage in self._stages):
            self._through = max(self._through, head.position)
            self.times.cut(self._stages, head.spent)
        elif head.kind == "token" and sender == self._stages[-1].peer and head.position >= len(self._tokens):
            self._take_tokens(sender, head, list(memoryview(raw).cast("i")))
        elif head.kind == "scores" and sender == self._stages[-1].peer and self._request.score:
            self._take_scores(sender, head, raw)
        else:
            return
        self._moved = asyncio.get_running_loop().time()
        self._wake.set()

    def _take_scores(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        request = self._request
        try:
            self.scores |= read_scores(head, raw, request.tokens, (request.sampling.logprobs or 0) + 1, request.vocabulary)
        except PeerFault as error:
            self._lose(StageLost(sender, error.message, accuser=self._network.peer_id))

    def _take_tokens(self, sender: PeerId, head: StepHead, tokens: list[int]) -> None:
        try:
            check_tokens(head, tokens, len(self._tokens), self._asked)
        except PeerFault as error:
            self._lose(StageLost(sender, error.message, accuser=self._network.peer_id))
            return
        self.times.token(self._stages, head.spent, asyncio.get_running_loop().time())
        for at, token in enumerate(tokens):
            self._tokens.append(token)
            self._inbox.append(Sampled(token, self._asked.finish(token, head.position + at), head.logprobs))

    # Waiting

    async def _next(self) -> Sampled:
        while not self._inbox:
            if self._lost is not None:
                raise self._lost
            self._wake.clear()
            try:
                async with asyncio.timeout(_LOOK):
                    await self._wake.wait()
            except TimeoutError:
                self._look()
        return self._inbox.popleft()

    def _look(self) -> None:
        """Nothing has come for a while: somebody computes, or a hop is broken."""
        now = asyncio.get_running_loop().time()
        quiet = now - max([self._moved, *(link.moved for link in self.links)])
        if quiet >= STEP_TIMEOUT:
            self._lose(StageLost(self._slowest(), f"no progress within {STEP_TIMEOUT:.0f} s"))
        elif quiet >= STALL and not any(link.busy for link in self.links):
            self._lose(self._broken_hop())

    def _broken_hop(self) -> StageLost:
        """Into which something should have gone: the stage before it first, the one behind when it happens again."""
        wanted = len(self._tokens)
        at = next((at for at, link in enumerate(self.links) if link.position < wanted), len(self.links))
        before, behind = self.links[max(at - 1, 0)].peer, self.links[min(at, len(self.links) - 1)].peer
        self._stalls[behind] += 1
        culprit = before if self._stalls[behind] == 1 else behind
        return StageLost(culprit, f"nothing came through for {STALL:g} s, though no stage computes")

    def _lose(self, lost: StageLost) -> None:
        if lost.accuser is not None and all(lost.peer != stage.peer for stage in self._stages):
            # Who is blamed is replaced already; a stage that failed for it is lost itself.
            if all(link.peer != lost.accuser or not link.dead for link in self.links):
                return
            lost = StageLost(lost.accuser, lost.message)
        if self._lost is None:
            self._lost = lost
        self._wake.set()

    async def _or_lost(self, work: Coroutine[Any, Any, None], timeout: float, what: str) -> None:
        """`work`'s end, unless a stage is lost or the deadline passes first."""
        task = asyncio.ensure_future(work)
        end = asyncio.get_running_loop().time() + timeout
        try:
            while not task.done():
                if self._lost is not None:
                    raise self._lost
                if asyncio.get_running_loop().time() > end:
                    raise StageLost(self._slowest(), f"{what} within {timeout:.1f} s")
                self._wake.clear()
                waker = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait([task, waker], timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
                waker.cancel()
            task.result()
        finally:
            task.cancel()

    def _slowest(self) -> PeerId:
        return min(self.links, key=lambda link: (link.ready.is_set(), link.rerouted.is_set(), link.heard)).peer


async def open_stage(network: Network, opening: OpenSession) -> Stream:
    """A session stream to the stage at `opening.index`, asked for; `StageLost` when its node can't be reached."""
    peer = PeerId(opening.stages[opening.index].peer)
    try:
        stream = await network.open(peer, SESSION_PROTOCOL, OPEN_TIMEOUT)
        try:
            await stream.send(pack(opening), OPEN_TIMEOUT)
        except BaseException:
            stream.reset()
            raise
    except MfError as error:
        raise StageLost(peer, error.message) from error
    return stream


def cuts(start: int, begin: int, end: int) -> Sequence[range]:
    """[start, end) in ranges of at most CUT, one of them ending at `begin`."""
    edges = sorted({start, min(max(begin, start), end), end})
    return [range(at, min(at + CUT, stop)) for low, stop in pairwise(edges) for at in range(low, stop, CUT)]
