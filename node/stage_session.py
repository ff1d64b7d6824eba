"""One session on one stage: steps in, computed in order, results passed on at once.

The way of a single token is the hot path: a frame is checked, given to the worker, and its result sealed and sent, each in the very
callback that brought it, without a task or a turn of the loop between. Everything else may take its time.

What comes is believed as far as it was checked: sender, epoch, position, dtype, shape, and that all numbers are finite. A peer that is
the right one and sends something else is blamed by name, and the entry replaces it: a wrong reply is never passed on. What has been
sent is kept (node/step_log.py), so that the next stage can be rebuilt on another node from here.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from node.ending import left_by
from node.locate import Located
from node.prompt_scores import packed_scores
from node.stage_checks import WIDTH, check_route
from node.stage_parts import StageParts
from node.statements import Statements
from node.step_log import LEFT_SECONDS, StepLog
from node.straight import Straight
from node.waiting_line import PEERS_MOST, Asker
from node.worker import STEP_SECONDS
from protocol import limits
from protocol.errors import BadInput, Conflict, DeadlineExceeded, MfError, NotFound, PeerFault
from protocol.ids import ModelId, PeerId
from protocol.messages import OpenSession, Reroute, StepHead, TokenLogprob
from protocol.step_times import with_own
from runtime.drafting import Drafter
from runtime.finite import all_finite
from runtime.interface import UNCHECKED, Onward, OpenSequence, Step, Stepped
from runtime.memory import TRAVELS

log = logging.getLogger(__name__)


TRUSTED_WEIGHT = 4.0
"""Share of the engine of a session whose entry this node trusts, beside a stranger's."""


@dataclass(slots=True)
class Incoming:
    head: StepHead
    raw: memoryview
    count: int


class StageSession:
    """`run` holds it; `fault` and `blames` say why it ended. `BadInput` for a route that makes no sense."""

    def __init__(self, parts: StageParts, request: OpenSession) -> None:
        self._parts = parts
        self._request = request
        self.spec = check_route(request, parts.me)
        self._stages, self._index, self._epoch, self._resume = request.stages, request.index, request.epoch, request.resume
        # an entry that keeps both ends runs two stages of one session, and a stage may be opened again
        self._name = f"{request.session.hex()}.{self.spec.first}.{request.epoch}"
        self.statements = Statements(request, self.spec, parts.seal, parts.unprinted)
        self._queue: deque[Incoming] = deque()
        self._history: list[int] = []
        self._drafter: Drafter | None = None
        self._guessed = 0
        self._sent_guesses = 0
        self._ids: dict[int, list[int]] = {}
        self._goes_back = False
        self._log = StepLog(parts.logs)
        self._due = 0
        self._stepped = False
        self._straight = Straight(parts.lanes)
        self._begun: float | None = None
        self._hidden: int | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._warming: set[asyncio.Task[None]] = set()
        self.ready = asyncio.Event()
        self.line: int | None = None
        """Its place among those who wait for room here."""
        self._lined: float | None = None
        self.timings: dict[str, float] = {}
        self.position = 0
        self._unsent: tuple[PeerId, MfError] | None = None
        self.troubled = asyncio.Event()
        """Set while the entry hasn't heard what `trouble` gives."""
        self.blames: PeerId | None = None
        self.pace: list[float] = []

    @property
    def busy(self) -> bool:
        return self._begun is not None

    @property
    def _last(self) -> bool:
        return self._index == len(self._stages) - 1

    @property
    def _after(self) -> PeerId:
        """Who waits for what comes of a token's step: the last stage's token begins the next one's way."""
        return PeerId(self._stages[0 if self._last else self._index + 1].peer)

    async def run(self) -> None:
        """Loads, then computes until cancelled; raises what went wrong."""
        request, parts = self._request, self._parts
        located = await located_for(parts, request)
        self._hidden = located.manifest.summary.hidden if located.manifest is not None else None
        opening = OpenSequence(stage="", session=self._name, tokens_max=request.tokens_max, sampling=request.sampling, reply=request.reply)
        opening.account = request.entry  # many sessions of one node count no more than few of another's
        # What a session is worth is this node's view of who asks: nothing that the entry says of itself counts.
        opening.weight, opening.priority = (TRUSTED_WEIGHT, 1) if parts.trusted(PeerId(request.entry)) else (1.0, 0)
        started = time.monotonic()
        leaving = left_by(request, self.spec)
        if request.after is not None:
            opening.after, opening.positions = left_by(request, self.spec, request.after.session), request.after.positions
            await parts.ending.over(opening.after)
        async with (
            parts.ending.running(leaving),
            parts.room.sequence(located, self.spec.first, self.spec.end, request.precision, opening, self._asker()) as hold,
        ):
            self.line = None
            self._goes_back = hold.stage.goes_back and request.drafts
            self.position = self._due = hold.reused
            self._history = list(request.known or ())[: hold.reused]
            self._log = parts.logs.resume(opening.after if hold.reused else None, hold.reused)
            self.timings = {**hold.stage.timings, "open": time.monotonic() - started}
            if self._lined is not None:
                self.timings["line"] = time.monotonic() - self._lined
            parts.steps.listen(request.session, self._take)
            hold.when_lost(self._fail)
            self._warm()
            try:
                self.ready.set()
                await self._over
            finally:
                parts.steps.forget(request.session, self._take)
                self.statements.drop()
                for task in self._warming:
                    task.cancel()
                if request.keep and (self._over.cancelled() or not self._over.done()):
                    hold.left = leaving
                if hold.left is not None and hold.stage.goes_back and parts.worker.reuse:
                    parts.logs.leave(leaving, self._log, time.monotonic())
                    asyncio.get_running_loop().call_later(LEFT_SECONDS, lambda: parts.logs.expire(time.monotonic()))
                else:
                    self._log.drop()

    def _asker(self) -> Asker:
        """How it waits for room; that a reply has begun is believed of those whose word counts here."""

        def told(position: int) -> None:
            self.line, self._lined = position, self._lined or time.monotonic()

        entry, mine = PeerId(self._request.entry), self._request.entry == self._parts.me
        asker = Asker(entry, told, self._request.wait, self._request.begun, mine or self._parts.trusted(entry))
        return asker if mine else replace(asker, most=PEERS_MOST)

    def check(self, now: float) -> None:
        """Called now and then: ends the session when a step has taken too long."""
        if self._begun is not None and now - self._begun > STEP_SECONDS:
            self._fail(DeadlineExceeded(f"the worker didn't finish a step within {STEP_SECONDS:.0f} s"))

    def trouble(self) -> tuple[PeerId, MfError] | None:
        """Once: whom a step couldn't be brought to, and why, while the session goes on."""
        unsent, self._unsent = self._unsent, None
        self.troubled.clear()
        return unsent

    def reroute(self, change: Reroute) -> None:
        """Another stage is replaced: the new route, and what the next stage lacks from the log. `Conflict` when the log hasn't got it."""
        changed = OpenSession(
            **{name: getattr(self._request, name) for name in OpenSession.__struct_fields__}
            | {"stages": change.stages, "index": change.index, "epoch": change.epoch, "resume": change.resume}
        )
        spec = check_route(changed, self._parts.me)
        if (spec.first, spec.end) != (self.spec.first, self.spec.end) or change.epoch <= self._epoch:
            raise BadInput("reroute: another stage, or an epoch that isn't new")
        if not 0 <= change.resume <= change.position <= self.position:
            raise Conflict(f"the stage stands at position {self.position}, the route begins again at {change.position}")
        self._stages, self._index, self._epoch, self._resume = change.stages, change.index, change.epoch, change.resume
        self._queue.clear()
        self.trouble()
        self._guessed, self._drafter = 0, None
        self._straight.begin()
        self._ids.clear()
        self._due = self.position = change.position
        self._log.truncate(change.position)
        self.statements.truncate(change.position)
        self._warm()
        if change.resume < change.position and not self._last:
            self._send_again(change.resume, change.position)

    def _send_again(self, start: int, end: int) -> None:
        if not self._log.complete or self._log.end != end:
            raise Conflict("what this stage sent isn't kept any more: the next one has to be rebuilt from the prompt")
        for sent in self._log.since(start):
            self._send_on(sent.position, sent.count, sent.raw, more=True, spent=[0] * 2 * min(self._index + 1, limits.MAX_TIMED_STAGES))

    def _warm(self) -> None:
        """Makes the connections ahead, so that the first step doesn't wait for them."""
        towards = [self._request.entry, self._stages[0].peer] if self._last else [self._stages[self._index + 1].peer]
        for peer in towards:
            self._warm_one(self._parts.steps.warm(PeerId(peer)))
        self._warm_lane()

    def _warm_lane(self) -> None:
        self._warm_one(self._straight.warm(self._after))

    def _warm_one(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="warm a connection")
        self._warming.add(task)
        task.add_done_callback(self._warming.discard)

    # In

    def _take(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        """A frame for this stage, from the one peer that may send it."""
        if head.stage != self._index or head.epoch < self._epoch or head.kind in ("cut", "scores") or head.finish is not None:
            return  # for the entry, for another stage of the session on this node, or left over from before a replacement
        if head.kind == "guess":
            self._take_ids(sender, head, raw)
            return
        if sender != self._sender_of(head.kind):
            raise PeerFault(f"{sender} may not send {head.kind} to stage {self._index}")
        if not self._stepped:
            self._begin_at(head.position)
        if self._guessed and self._due - self._guessed <= head.position < self._due:
            self._due = self.position = head.position  # no more of the guesses were right
        if head.position < self._due:
            return  # sent twice
        try:
            incoming = self._checked(head, raw)
        except MfError as error:
            self._fail(error, blames=sender)
            raise
        self._guessed = head.guessed
        if self._index == 0:
            incoming = self._guess(incoming)
        self._due = incoming.head.position + incoming.count
        self._queue.append(incoming)
        if self._begun is None:
            self._next()
        self._look_at(sender, head.kind, raw)

    def _look_at(self, sender: PeerId, kind: str, raw: memoryview) -> None:
        """Whether they are numbers, while the worker computes already: where they aren't, nothing that comes of them leaves here."""
        if kind == "hidden" and not all_finite(raw, TRAVELS[self._request.precision]):
            fault = PeerFault("hidden states that aren't numbers")
            self._fail(fault, blames=sender)
            raise fault

    def _sender_of(self, kind: str) -> str | None:
        """The one who may send it to this stage."""
        if self._index:
            return self._stages[self._index - 1].peer if kind == "hidden" else None
        return {"tokens": self._request.entry, "token": self._stages[-1].peer}.get(kind)

    def _begin_at(self, position: int) -> None:
        """The first step may begin below what was taken over: not every stage of the route had as much."""
        self._stepped = True
        if position < self._due:
            self._due = self.position = position
            del self._history[position:]

    def _checked(self, head: StepHead, raw: memoryview) -> Incoming:
        if head.epoch > self._epoch:
            raise PeerFault(f"a step of epoch {head.epoch}, the session is in {self._epoch}")
        count = len(raw) // 4
        if head.kind == "hidden":
            assert head.shape is not None  # parse_step checked it
            count = head.shape[0]
            if head.dtype != TRAVELS[self._request.precision]:
                raise PeerFault(f"hidden states of {head.dtype}, the session runs in {self._request.precision}")
            if self._hidden is not None and head.shape[1] != self._hidden:
                raise PeerFault(f"hidden states of width {head.shape[1]}, the model's is {self._hidden}")
        if head.guessed and (head.kind != "hidden" or head.guessed >= count):
            raise PeerFault(f"{head.guessed} guessed tokens among {count} positions")
        if count < 1 or head.position != self._due or head.position + count > self._request.tokens_max:
            raise PeerFault(f"a step at position {head.position} of {count}, {self._due} comes next of {self._request.tokens_max}")
        return Incoming(head, raw, count)

    def _guess(self, incoming: Incoming) -> Incoming:
        """The first stage knows all tokens: to the newest one it adds those that are likely to follow, to be verified on the same way."""
        head, tokens = incoming.head, list(memoryview(incoming.raw).cast("i"))
        if not self._goes_back or head.more:
            self._history[head.position :] = tokens
            return incoming
        if self._drafter is None or head.kind == "tokens":
            self._history[head.position :] = tokens
            self._drafter = Drafter(self._history)
            return incoming
        self._history[head.position :] = tokens
        self._drafter.learn(self._sent_guesses, len(tokens) - 1)
        self._drafter.extend(tokens)
        # What came before the newest is in the caches here already: those were the right guesses.
        position = self.position = head.position + len(tokens) - 1
        guesses = self._drafter.draft(self._request.tokens_max - position - 2)
        self._guessed = self._sent_guesses = len(guesses)
        given = [tokens[-1], *guesses]
        # The entry reads the same head.
        head = msgspec.structs.replace(head, position=position, guessed=len(guesses))
        if guesses and not self._last:
            ids = self._head("guess", position, len(self._stages) - 1)
            self._post(self._stages[-1].peer, ids, struct.pack(f"<{len(guesses)}i", *guesses))
        return Incoming(head, memoryview(struct.pack(f"<{len(given)}i", *given)), len(given))

    def _take_ids(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        """What was guessed, for the last stage alone: those between need only know how many."""
        if not self._last or self._index == 0 or sender != self._stages[0].peer:
            raise PeerFault(f"{sender} may not send guesses to stage {self._index}")
        if head.epoch != self._epoch or head.position < self.position:
            return
        self._ids = {head.position: list(memoryview(raw).cast("i"))}
        if self._queue and self._begun is None:
            self._next()

    def _next(self) -> None:
        head = self._queue[0].head
        ids = self._ids.get(head.position) if self._last and head.kind == "hidden" and head.guessed else None
        if ids is None and self._last and head.kind == "hidden" and head.guessed:
            return  # they come another way, and not always first
        incoming = self._queue.popleft()
        step = Step(session=self._name, epoch=head.epoch, position=head.position, count=incoming.count, sample=self._last and not head.more)
        step.guessed, step.drafted = head.guessed, ids
        if head.kind == "hidden":
            step.hidden = bytes(incoming.raw)
        else:
            step.tokens = list(memoryview(incoming.raw).cast("i"))
        if self._last:
            step.score = self._to_score(head.position, incoming.count)
            step.check, step.tail = self.statements.given(head.position, incoming.count), self.statements.asked
        step.onward = self._onward(head, incoming.count)
        self._begun = asyncio.get_running_loop().time()
        self._parts.worker.begin_step(step, self._done(incoming, step, time.monotonic()))

    def _onward(self, head: StepHead, count: int) -> Onward | None:
        if (lane := self._straight.lane(self._after, head, count, self._resume)) is None:
            return None
        told = self._head("token" if self._last else "hidden", head.position + self._last, 0 if self._last else self._index + 1)
        told.spent = head.spent if self._index else None
        tells = not self._last or self._after == self._request.entry
        stop, end = (self._request.stop_tokens, self._request.tokens_max) if self._last else ([], 0)
        return Onward(lane=lane, head=told, index=self._index, asked=time.monotonic(), tells=tells, stop=stop, end=end)

    def _to_score(self, position: int, count: int) -> list[int] | None:
        """The prompt's tokens that come after these rows; None where none do."""
        after = (self._request.score or [])[position + 1 : position + 1 + count]
        return [*after, *[UNCHECKED] * (count - len(after))] if after else None

    # Out

    def _done(self, incoming: Incoming, step: Step, began: float) -> Callable[[Stepped | MfError], None]:
        def done(answer: Stepped | MfError) -> None:
            self._begun = None
            if self._over.done():
                return
            if incoming.head.epoch == self._epoch:
                if isinstance(answer, MfError):
                    self._fail(answer, blames=self._to_blame(incoming.head, answer))
                    return
                spent = self._spent(incoming.head, answer.seconds, time.monotonic() - began)
                self._pass_on(incoming.head, incoming.count, answer, spent)
                if step.onward is not None:
                    self._note_lane(step.onward.lane, answer.sent)
                self._note(step, answer, began)
            if self._queue and self._begun is None:
                self._next()

        return done

    def _note(self, step: Step, answer: Stepped, began: float) -> None:
        """When the result is on its way: how long it took, and what was computed."""
        now = time.monotonic()
        self._parts.figures.own.step(step.count, self.spec.end - self.spec.first, answer.seconds, now - began, now)
        self._parts.figures.observe("own", "compute", answer.seconds)
        self._parts.figures.observe("own", "wait", max(0.0, now - began - answer.seconds))
        if not step.guessed:
            self._note_pace(step.count, answer.seconds / step.count)
        self.statements.add(step, answer)

    def _to_blame(self, head: StepHead, error: MfError) -> PeerId | None:
        """What the worker finds wrong with a step is the fault of who sent it; a prompt's is the asker's own."""
        if not isinstance(error, BadInput) or head.kind == "tokens":
            return None
        return PeerId(self._stages[-1 if head.kind == "token" else self._index - 1].peer)

    def _spent(self, head: StepHead, computed: float, took: float) -> list[int] | None:
        """What is told of the step's time so far; a first stage begins anew."""
        return with_own(head.spent if self._index else None, self._index, computed, max(0.0, took - computed))

    def _pass_on(self, head: StepHead, count: int, done: Stepped, spent: list[int] | None = None) -> None:
        after = head.position + count - (head.guessed if self._last else 0)
        self.position = after + len(done.more or ())
        if done.scored:
            self._send_scores(head.position + 1, done.scored)
        if not self._last:
            if done.hidden is None:
                self._fail(MfError("the worker gave no hidden state"))
                return
            if after > self._resume and done.sent <= 0:
                self._send_on(head.position, count, done.hidden, head.more, head.guessed, spent)
            elif head.more:
                self._tell_cut(after, spent)
            self._log.add(head.position, count, done.hidden)
        elif head.more:
            self._tell_cut(after, spent)
        elif done.token is None:
            self._fail(MfError("the worker gave no token"))
        else:
            self._send_tokens(after, [done.token, *(done.more or ())], done.logprobs, spent, done.sent > 0)

    def _note_lane(self, lane: int, sent: int) -> None:
        """`sent` as of `Stepped`."""
        if sent > 0:
            self._parts.steps.count(self._request.session, sent)
        elif sent < 0:
            self._straight.ended(self._after, lane)
            self._warm_lane()

    def _note_pace(self, count: int, seconds: float) -> None:
        """Seconds of a position: smoothed, single tokens and prompts each by themselves."""
        pace, at = self.pace or [0.0, 0.0], 0 if count == 1 else 1
        pace[at] = 0.9 * pace[at] + 0.1 * seconds if pace[at] else seconds
        self.pace = pace

    def _send_on(self, position: int, count: int, raw: bytes, more: bool, guessed: int = 0, spent: list[int] | None = None) -> None:
        head = self._head("hidden", position, self._index + 1)
        head.guessed, head.spent = guessed, spent
        dtype = TRAVELS[self._request.precision]
        head.dtype, head.shape, head.more = dtype, [count, len(raw) // count // WIDTH[dtype]], more
        self._post(self._stages[self._index + 1].peer, head, raw)

    def _send_tokens(
        self, after: int, tokens: list[int], logprobs: list[TokenLogprob] | None, spent: list[int] | None, sent: bool = False
    ) -> None:
        """First to the first stage, unless it has been `sent` what it has work to do on; those behind one that ends the reply are none of
        it."""
        entry, first = self._request.entry, self._stages[0].peer
        ends = [self._finish(token, after + at) for at, token in enumerate(tokens)]
        end = next((at for at, finish in enumerate(ends) if finish is not None), len(tokens) - 1)
        raw = struct.pack(f"<{end + 1}i", *tokens[: end + 1])
        for peer in dict.fromkeys([first, entry] if ends[end] is None else [entry]):
            if sent and peer == first:
                continue
            head = self._head("token", after, 0 if peer == first else None)
            head.finish = ends[end]
            if peer == entry:
                head.logprobs, head.spent = logprobs, spent
            self._post(peer, head, raw)

    def _send_scores(self, position: int, scored: list[list[TokenLogprob]]) -> None:
        head = self._head("scores", position, None)
        head.shape, raw = packed_scores(scored)
        self._post(self._request.entry, head, raw)

    def _tell_cut(self, after: int, spent: list[int] | None) -> None:
        head = self._head("cut", after, None)
        head.spent = spent
        self._post(self._request.entry, head, b"")

    def _head(self, kind: str, position: int, stage: int | None) -> StepHead:
        return StepHead(session=self._request.session, epoch=self._epoch, position=position, kind=kind, stage=stage)

    def _post(self, peer: str, head: StepHead, raw: bytes) -> None:
        epoch = head.epoch

        def failed(error: MfError) -> None:
            # What was computed here stays: the entry replaces who is gone, and this stage sends it again.
            if epoch == self._epoch and peer != self._request.entry:
                self._unsent = PeerId(peer), PeerFault(f"a step couldn't be sent to {peer}: {error.message}")
                self.troubled.set()

        self._parts.steps.post(PeerId(peer), head, raw, failed)

    def _finish(self, token: int, after: int) -> str | None:
        if token in self._request.stop_tokens:
            return "stop"
        return "length" if after + 1 >= self._request.tokens_max else None

    def _fail(self, error: MfError, blames: PeerId | None = None) -> None:
        if not self._over.done():
            self.blames = blames
            self._over.set_exception(error)


async def located_for(parts: StageParts, request: OpenSession) -> Located:
    """The session's model; `NotFound` where it is private and its entry isn't among the nodes that may run it: it isn't there for them."""
    located = await parts.locator.locate(ModelId(request.model))
    if request.entry != parts.me and not located.may_run_at(PeerId(request.entry)):
        raise NotFound("this model is private, and not shared with the session's entry")
    return located
