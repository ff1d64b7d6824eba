"""The two sides of `/mf/swarm/1`: answering a peer's questions, and bringing two archives together.

Every record is checked before it is kept (signature, expiry, limits) and news is passed on to at most 12 random peers;
what a push missed, the comparison with a random peer every 20 s brings. A peer that pushes or asks more
than its allowance is cut off, not queued.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from node.network.interface import Stream
from node.swarm.archive import BUCKETS, AnyKept, Archive, differing, split_marks
from node.swarm.book import MARK, Outcome, mark_of
from node.swarm.budget import TokenBucket
from node.swarm.link import Link
from node.swarm.supervisor import Supervisor
from node.swarm.wire import (
    BATCH_BYTES,
    MAX_BATCH,
    MAX_MARKS,
    Batch,
    Frame,
    Hello,
    Marks,
    Nothing,
    Probe,
    Probed,
    Summary,
    body_of,
    decode,
    encode,
)
from protocol.errors import BadInput, MfError, PeerFault
from protocol.framing import Record
from protocol.ids import PeerId

log = logging.getLogger(__name__)

_SILENCE = 60.0
_SLICE = 8
"""Signatures checked before the loop gets its turn: about 1 ms."""
_QUESTIONS = (100.0, 500.0)
_PUSHED = (200.0, 4_096.0)
_SAID = (1.0, 20.0)
_PROBES = 4
_SYNC = 5.0
_TURNS = 16
"""Questions of one comparison: each brings up to MAX_MARKS records, 16 all that any archive may hold."""
_PUSHED_AT_ONCE = 1_024
"""Records that a comparison sends: within what the other side takes. The rest it fetches when it asks itself."""


@dataclass(frozen=True)
class Ours:
    """What the exchange needs of the node around it."""

    own: PeerId
    hello: Callable[[PeerId], Hello]
    greeted: Callable[[PeerId, Hello], None]
    answers: Callable[[PeerId], Awaitable[bool | None]]
    asked: Callable[[PeerId], None]
    news: Callable[[AnyKept, str, PeerId], None]
    pinned: Callable[[PeerId], bool]
    now: Callable[[], float]
    monotonic: Callable[[], float]


class Exchange:
    def __init__(self, archive: Archive, ours: Ours, supervisor: Supervisor) -> None:
        self._archive = archive
        self._ours = ours
        self._supervisor = supervisor
        self._pushed: dict[PeerId, TokenBucket] = {}
        self._said = TokenBucket(*_SAID, ours.monotonic())

    def shown(self, kept: AnyKept) -> bool:
        """A NodeRecord is passed on only after a handshake with its peer."""
        return not hasattr(kept.record, "addresses") or self._archive.peers.met(kept.signer)

    def forget(self, peer: PeerId) -> None:
        self._pushed.pop(peer, None)

    async def greet(self, link: Link, timeout: float) -> None:
        """Says who we are and learns who they are; `PeerFault` when they don't keep to the protocol."""
        self._ours.greeted(link.peer, await link.ask("hello", self._ours.hello(link.peer), Hello, timeout))

    async def sync(self, link: Link, turns: int = _TURNS) -> int:
        """Brings both archives together, in as many turns as that takes and is let; returns the records taken."""
        taken = 0
        for _ in range(turns):
            theirs, new = await self._turn(link)
            taken += new
            if not theirs.more or not new:
                break
        return taken

    async def _turn(self, link: Link) -> tuple[Marks, int]:
        theirs = await link.ask("summary", Summary(sums=self._archive.sums(self.shown)), Marks, _SYNC)
        listed = split_marks(theirs.marks)
        taken = await self._fetch(link, listed)
        known, buckets = set(listed), [bucket for bucket in theirs.buckets or () if 0 <= bucket < BUCKETS]
        marks, _ = self._archive.listed(buckets, self.shown, MAX_MARKS)
        self.push(link, [mark for mark in marks if mark not in known][:_PUSHED_AT_ONCE])
        return theirs, taken

    async def _fetch(self, link: Link, listed: list[bytes]) -> int:
        wanted = dict.fromkeys(mark for mark in listed if self._archive.lacks(mark))
        taken = 0
        while wanted:
            batch = await link.ask("fetch", Marks(marks=b"".join(islice(wanted, MAX_BATCH))), Batch, _SYNC)
            fresh = [envelope for envelope in batch.records if mark_of(envelope) in wanted]
            if not fresh:
                break
            for envelope in fresh:
                wanted.pop(mark_of(envelope), None)
            taken += await self.take(link.peer, fresh)
        return taken

    def push(self, link: Link, marks: Sequence[bytes]) -> None:
        """Sends these records without waiting, in as many frames as they need."""
        left = list(marks)
        while left:
            envelopes = self._archive.envelopes(left[:MAX_BATCH], BATCH_BYTES)
            if not envelopes:
                break
            link.tell("push", Batch(records=envelopes))
            sent = {mark_of(envelope) for envelope in envelopes}
            left = [mark for mark in left if mark not in sent] if len(envelopes) < len(left) else []

    async def take(self, origin: PeerId, envelopes: Sequence[bytes]) -> int:
        """Checks and keeps records from a peer; returns how many were news."""
        news = 0
        for index, envelope in enumerate(envelopes):
            if index % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            if self._archive.knows(envelope):
                continue
            try:
                taken = self._archive.take(envelope, self._ours.now(), self._ours.pinned)
            except BadInput as error:
                self._refuse(origin, error.message)
                continue
            if taken is not None and taken.outcome is Outcome.NEW:
                news += 1
                self._ours.news(taken.kept, taken.kind, origin)
            elif taken is not None and taken.outcome is Outcome.FULL:
                self._refuse(origin, f"no room for another {taken.kind} record")
        return news

    def _refuse(self, origin: PeerId, reason: str) -> None:
        """Said at most once a second on the whole, so that hostile records don't fill the log."""
        if not self._said.take(1, self._ours.monotonic()):
            return
        log.info(
            "a record from %s was refused: %s",
            origin,
            reason,
            extra={"event": "record_refused", "fields": {"peer": origin, "reason": reason}},
        )

    async def handle(self, stream: Stream) -> None:
        """Answers one peer's questions until it leaves. Nonsense ends in `PeerFault`, which resets the stream."""
        await _Answers(self._archive, self._ours, self, self._supervisor, stream).run()

    def allowance(self, peer: PeerId) -> TokenBucket:
        """Records this peer may push; kept over its streams, so that reopening doesn't refill it."""
        return self._pushed.setdefault(peer, TokenBucket(*_PUSHED, self._ours.monotonic()))


class _Answers:
    """One incoming stream."""

    def __init__(self, archive: Archive, ours: Ours, exchange: Exchange, supervisor: Supervisor, stream: Stream) -> None:
        self._archive = archive
        self._ours = ours
        self._exchange = exchange
        self._supervisor = supervisor
        self._stream = stream
        self._peer = stream.peer
        self._lock = asyncio.Lock()
        self._probes = 0
        self._greeted = False
        self._questions = TokenBucket(*_QUESTIONS, ours.monotonic())
        self._lot = random.Random(stream.peer)

    async def run(self) -> None:
        while True:
            data = await self._stream.receive(_SILENCE)
            if not self._questions.take(1, self._ours.monotonic()):
                raise PeerFault(f"{self._peer} asks more than 100 questions a second on its swarm stream")
            try:
                await self._answer(decode(data))
            except BadInput as error:
                raise PeerFault(f"{self._peer} broke the swarm protocol: {error.message}") from error

    async def _answer(self, frame: Frame) -> None:
        if frame.kind != "hello" and not self._greeted:
            raise BadInput(f"{frame.kind!r} before hello")
        match frame.kind:
            case "hello":
                self._ours.greeted(self._peer, body_of(frame, Hello))
                self._greeted = True
                await self._reply(frame, self._ours.hello(self._peer))
            case "ping":
                self._ours.asked(self._peer)
                await self._reply(frame, Nothing())
            case "push":
                await self._pushed(body_of(frame, Batch))
            case "summary":
                await self._reply(frame, self._summary(body_of(frame, Summary)))
            case "fetch":
                await self._reply(frame, self._fetched(body_of(frame, Marks)))
            case "probe":
                self._probe(frame, PeerId(body_of(frame, Probe).peer))
            case _:
                await self._send(frame.id, "refused", BadInput(f"swarm: {frame.kind!r} isn't known to this version"))

    async def _pushed(self, batch: Batch) -> None:
        fresh = [envelope for envelope in batch.records if not self._archive.knows(envelope)]
        if not self._exchange.allowance(self._peer).take(len(fresh), self._ours.monotonic()):
            raise PeerFault(f"{self._peer} pushes more than 200 records a second")
        await self._exchange.take(self._peer, fresh)

    def _summary(self, asked: Summary) -> Marks:
        """Which buckets come where not all do is drawn: turn by turn all have theirs."""
        buckets = differing(self._archive.sums(self._exchange.shown), asked.sums)
        self._lot.shuffle(buckets)
        listed, whole = self._archive.listed(buckets, self._exchange.shown, MAX_MARKS)
        return Marks(marks=b"".join(listed), buckets=whole, more=len(whole) < len(buckets) or None)

    def _fetched(self, asked: Marks) -> Batch:
        return Batch(records=self._archive.envelopes(split_marks(asked.marks)[:MAX_BATCH], BATCH_BYTES))

    def _probe(self, frame: Frame, about: PeerId) -> None:
        if self._probes >= _PROBES:
            raise PeerFault(f"{self._peer} has {_PROBES} probes under way and asks for another")
        self._probes += 1
        if self._supervisor.spawn(self._probed(frame, about), f"probe for {self._peer}") is None:
            self._probes -= 1

    async def _probed(self, frame: Frame, about: PeerId) -> None:
        try:
            await self._reply(frame, Probed(alive=await self._ours.answers(about)))
        finally:
            self._probes -= 1

    async def _reply(self, frame: Frame, body: Record) -> None:
        await self._send(frame.id, "reply", body)

    async def _send(self, number: int, kind: str, body: Record | MfError) -> None:
        if number == 0:
            return
        plain = body.to_wire() if isinstance(body, MfError) else body
        async with self._lock:
            await self._stream.send(encode(number, kind, plain))


assert MAX_MARKS * MARK < BATCH_BYTES
