"""One audit of one peer: ping, walk, show, and what the answers come to (`protocol/audits.py`, `erasure/audit.py`).

Only what the peer signed makes a fault: frames that contradict its own signature are nonsense, of which nothing follows but that the shards
don't count. The clock runs from the question to the tags; a moment in which this node itself was slow isn't held against the peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType

from erasure.audit import STEPS, HeldShard, Speeds, Verdict, steps_to_show, units
from node.network.interface import Network, Stream
from protocol import limits
from protocol.audits import NONCE, TAG, AuditLeaves, Walk, open_leaves, open_tags, shown_targets, wrong_leaf
from protocol.encoding import Encoding, leaf_count, shard_root
from protocol.errors import BadInput, Forbidden, MfError, NotFound, PeerFault
from protocol.framing import pack
from protocol.ids import PeerId, digest
from protocol.messages import AUDIT_PROTOCOL, AuditReply, AuditRequest, AuditTarget, parse_reply

PINGS = 3
PING_WITHIN = 2.0
WALK_WITHIN = 5.0
"""Later than this is no answer at all."""
SHOW_WITHIN = 5.0
SLOWEST = 64 * limits.KIB
"""Bytes a second at which leaves must come; nothing follows from a slow line but that the shard isn't counted."""
_TICK = 0.01


@dataclass(frozen=True)
class Subject:
    """A shard to audit and the encoding that says what it is."""

    held: HeldShard
    encoding: Encoding

    @property
    def length(self) -> int:
        return self.encoding.shard_length()


@dataclass(frozen=True)
class Evidence:
    """What the peer signed, and the true leaf list and the leaf sent where they are needed: for `protocol.audits.proven_fault`."""

    held: HeldShard
    step: int
    tags: bytes
    leaves: bytes
    true_list: bytes | None = None
    leaf: bytes | None = None


@dataclass(frozen=True)
class Finding:
    """`seconds` from question to tags, `deadline` what was allowed; None where it didn't come to that."""

    held: HeldShard
    verdict: Verdict
    reason: str = ""
    seconds: float | None = None
    deadline: float | None = None
    evidence: Evidence | None = None


class AuditExchange:
    """`rtt` is what is known of the peer from elsewhere, seconds."""

    def __init__(self, network: Network, speeds: Speeds, rng: Random, clock: Callable[[], float]) -> None:
        self._network = network
        self._speeds = speeds
        self._rng = rng
        self._clock = clock

    async def audit(self, peer: PeerId, subjects: Sequence[Subject], rtt: float | None) -> list[Finding]:
        """A finding for each subject; never raises an `MfError`: that nothing came of it is a finding too."""
        try:
            stream = await self._network.open(peer, AUDIT_PROTOCOL)
        except MfError as error:
            return _unknown(subjects, error.message)
        try:
            findings = await _Audit(self, stream, subjects).run(rtt)
            await stream.close()
            return findings
        except MfError as error:
            stream.reset()
            return _unknown(subjects, error.message)
        except asyncio.CancelledError:
            stream.reset()
            raise

    @property
    def me(self) -> PeerId:
        return self._network.peer_id

    @property
    def speeds(self) -> Speeds:
        return self._speeds

    @property
    def rng(self) -> Random:
        return self._rng

    def now(self) -> float:
        return self._clock()


def _unknown(subjects: Sequence[Subject], reason: str) -> list[Finding]:
    return [Finding(subject.held, Verdict.UNKNOWN, reason) for subject in subjects]


class _Audit:
    def __init__(self, auditor: AuditExchange, stream: Stream, subjects: Sequence[Subject]) -> None:
        self._auditor = auditor
        self._stream = stream
        self._subjects = list(subjects)
        self._nonce = auditor.rng.randbytes(NONCE)
        self._targets = [AuditTarget(subject.held.encoding, subject.held.shard) for subject in subjects]

    async def run(self, rtt: float | None) -> list[Finding]:
        pings = [await self._ping() for _ in range(PINGS)]
        rtt = min(pings if rtt is None else [*pings, rtt])
        ask = AuditRequest(verb="walk", nonce=self._nonce, targets=self._targets, steps=STEPS)
        began = self._auditor.now()
        try:
            async with _OwnLateness() as own:
                signed = await self._ask(ask, WALK_WITHIN)
        except (NotFound, Forbidden) as error:
            return [Finding(subject.held, Verdict.MISSING, f"refuses: {error.message}") for subject in self._subjects]
        seconds = self._auditor.now() - began
        missing, tags = self._opened(signed)
        gone = [Finding(self._subjects[number].held, Verdict.MISSING, "says that it doesn't hold it") for number in missing]
        held = [subject for number, subject in enumerate(self._subjects) if number not in missing]
        if not held:
            return gone
        work = units([leaf_count(subject.length) for subject in held])
        deadline = self._auditor.speeds.deadline(self._stream.peer, rtt, work)
        wrong = await self._show(held, signed, tags)
        if seconds <= deadline and not wrong:
            self._auditor.speeds.note(self._stream.peer, seconds, rtt, work)
        verdict, reason = _in_time(seconds, deadline, own.seconds)
        findings = [wrong.get(subject.held) or Finding(subject.held, verdict, reason, seconds, deadline) for subject in held]
        return gone + findings

    async def _ping(self) -> float:
        began = self._auditor.now()
        await self._stream.send(pack(AuditRequest(verb="ping")), PING_WITHIN)
        parse_reply(await self._stream.receive(PING_WITHIN), AuditReply, f"audit ping of {self._stream.peer}")
        return self._auditor.now() - began

    async def _ask(self, request: AuditRequest, within: float) -> bytes:
        await self._stream.send(pack(request), within)
        reply = parse_reply(await self._stream.receive(within), AuditReply, f"audit {request.verb} of {self._stream.peer}")
        if reply.signed is None:
            raise PeerFault(f"{self._stream.peer} signed nothing in answer to an audit's {request.verb}")
        return reply.signed

    def _opened(self, signed: bytes) -> tuple[list[int], bytes]:
        """Numbers of the missing and the tags of the others; `PeerFault` when it answers another question than the one asked."""
        try:
            signer, said = open_tags(signed)
        except BadInput as error:
            raise PeerFault(f"{self._stream.peer} answered an audit with nonsense: {error.message}") from error
        asked = (self._stream.peer, self._nonce, self._targets, self._auditor.me)
        if (signer, said.nonce, said.targets, said.auditor) != asked or len(said.tags) not in (0, STEPS * TAG):
            raise PeerFault(f"{self._stream.peer} answered another audit than the one asked")
        return said.missing or [], said.tags

    async def _show(self, held: Sequence[Subject], signed_tags: bytes, tags: bytes) -> dict[HeldShard, Finding]:
        """The wrong ones."""
        walk = Walk(self._nonce, [subject.length for subject in held], STEPS)
        steps = steps_to_show(len(held), self._auditor.rng)
        signed = await self._ask(AuditRequest(verb="show", show=steps), SHOW_WITHIN)
        said = self._opened_leaves(signed, steps)
        order = shown_targets(walk, tags, steps)
        lists = {target: await self._list(held[target], said.roots[32 * at :][:32]) for at, target in enumerate(order)}
        wrong: dict[HeldShard, Finding] = {}
        for at, step in enumerate(steps):
            target, _leaf = walk.where(step, tags)
            held_shard, listed = held[target].held, lists[target]
            sent = await self._leaf(said.digests[32 * at :][:32])
            if listed is None:
                reason, evidence = "its leaf list doesn't give the encoding's root", Evidence(held_shard, step, signed_tags, signed)
            else:
                reason = wrong_leaf(walk, tags, step, sent, listed) or ""
                evidence = Evidence(held_shard, step, signed_tags, signed, listed, sent)
            if reason:
                wrong.setdefault(held_shard, Finding(held_shard, Verdict.WRONG, reason, evidence=evidence))
        return wrong

    def _opened_leaves(self, signed: bytes, steps: list[int]) -> AuditLeaves:
        try:
            signer, said = open_leaves(signed)
        except BadInput as error:
            raise PeerFault(f"{self._stream.peer} showed nonsense in an audit: {error.message}") from error
        if (signer, said.nonce, said.shown, said.auditor) != (self._stream.peer, self._nonce, steps, self._auditor.me):
            raise PeerFault(f"{self._stream.peer} showed another audit's leaves than the ones asked")
        return said

    async def _list(self, subject: Subject, root: bytes) -> bytes | None:
        """The leaf list as sent; None when its signed root isn't the encoding's."""
        listed = await self._bytes(32 * leaf_count(subject.length))
        if root != subject.encoding.roots[subject.held.shard]:
            return None
        if shard_root(subject.length, listed) != root:
            raise PeerFault(f"{self._stream.peer} sent another leaf list than it signed")
        return listed

    async def _leaf(self, signed: bytes) -> bytes:
        sent = await self._stream.receive(SHOW_WITHIN)
        if len(sent) > limits.LEAF or digest(sent) != signed:
            raise PeerFault(f"{self._stream.peer} sent another leaf than it signed")
        return sent

    async def _bytes(self, length: int) -> bytes:
        data = bytearray()
        try:
            async with asyncio.timeout(SHOW_WITHIN + length / SLOWEST):
                while len(data) < length:
                    got = await self._stream.receive(SHOW_WITHIN)
                    data += got
                    if not got or len(data) > length:
                        raise PeerFault(f"{self._stream.peer} sent a leaf list of another length than the shard's")
        except TimeoutError:
            raise PeerFault(f"{self._stream.peer} sent its leaf list in drops") from None
        return bytes(data)


def _in_time(seconds: float, deadline: float, own: float) -> tuple[Verdict, str]:
    if seconds <= deadline:
        return Verdict.PASSED, ""
    said = f"{1000 * seconds:.0f} ms, {1000 * deadline:.0f} ms allowed"
    if seconds - own <= deadline:
        return Verdict.UNKNOWN, f"{said}, but this node was busy itself"
    return Verdict.LATE, said


class _OwnLateness:
    """How long this node's own loop kept its timers waiting meanwhile, in all: `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _OwnLateness:
        self._task = asyncio.create_task(self._watch(), name="own lateness")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK
            try:
                await asyncio.sleep(_TICK)
            finally:
                self.seconds += max(0.0, loop.time() - due)
