"""Answers audits (`/mf/audit/1`): shows whoever asks that the shards announced lie here.

A walk makes this node read some leaves and a show makes it send a few: each peer has one of them at a time, all peers together a few, and
one too many is refused as busy, at once, since an answer that queued would look like one fetched elsewhere. Reading is the
transfer process's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.interface import Stream, StreamClosed
from node.store.interface import ShardKey
from node.swarm.budget import TokenBucket
from node.transfer.remote import Transfer
from protocol import limits
from protocol.audits import TAG, AuditLeaves, AuditTags, Walk, check_shown, check_targets, seal_leaves, seal_tags, shown_targets
from protocol.encoding import shard_root
from protocol.errors import BadInput, Busy, DeadlineExceeded, MfError
from protocol.framing import unpack
from protocol.ids import EncodingId, PeerId, digest
from protocol.messages import AUDIT_PROTOCOL, AuditReply, AuditRequest, refusal_frame, reply_frame

RATE, BURST = 1.0, 32.0
"""Walks a second that one peer may ask for, and at once."""
WALKS = 4
SHOWS = 8
"""Under way at once. A show holds some MiB until its auditor has taken them."""
SHOW_WITHIN = 60.0
MAX_PINGS = 8
_FRAME = 512 * limits.KIB
_IDLE = 30.0
_MAX_PEERS = 1_024


@dataclass(frozen=True)
class _Walked:
    """The walk just answered on a stream: shards held, their lengths, the tags."""

    nonce: bytes
    keys: list[ShardKey]
    lengths: list[int]
    walk: Walk
    tags: bytes


class AuditDesk:
    def __init__(self, key: Ed25519PrivateKey, transfer: Transfer, clock: Callable[[], float]) -> None:
        self._key = key
        self._transfer = transfer
        self._clock = clock
        self._buckets: OrderedDict[PeerId, TokenBucket] = OrderedDict()
        self._walks = _Turns(WALKS)
        self._shows = _Turns(SHOWS)

    async def handle(self, stream: Stream) -> None:
        """Serves one peer's audits, one after another, until it leaves or says nothing for half a minute."""
        walked: _Walked | None = None
        pings = 0
        while True:
            try:
                frame = await stream.receive(_IDLE)
            except StreamClosed:
                return
            try:
                request = unpack(frame, AuditRequest, f"{AUDIT_PROTOCOL} from {stream.peer}")
                if request.verb == "ping":
                    pings += 1
                    await self._pong(stream, pings)
                elif request.verb == "walk":
                    pings, walked = 0, await self._walk(stream, request)
                elif request.verb == "show":
                    asked, walked = walked, None
                    with self._shows.of(stream.peer):
                        await self._show(stream, request, asked)
                else:
                    raise BadInput(f"audit request: verb {request.verb[:16]!r}, ping, walk and show are known")
            except (StreamClosed, DeadlineExceeded):
                raise
            except MfError as error:
                walked = None
                await stream.send(refusal_frame(error))

    async def _pong(self, stream: Stream, pings: int) -> None:
        if pings > MAX_PINGS:
            raise Busy(f"{MAX_PINGS} pings are answered before a walk")
        await stream.send(reply_frame(AuditReply()))

    async def _walk(self, stream: Stream, request: AuditRequest) -> _Walked:
        nonce, targets, steps = request.nonce or b"", request.targets or [], request.steps or 0
        check_targets(nonce, targets, "audit request")
        if not len(targets) <= steps <= limits.MAX_AUDIT_STEPS:
            raise BadInput(f"audit request: {steps} steps, from one a target up to {limits.MAX_AUDIT_STEPS} are walked")
        self._charge(stream.peer)
        keys = [ShardKey(EncodingId(target.encoding), target.shard) for target in targets]
        with self._walks.of(stream.peer):
            done = await self._transfer.audit_walk(nonce, keys, steps)
        held = [key for number, key in enumerate(keys) if number not in done.missing]
        said = AuditTags(auditor=stream.peer, nonce=nonce, targets=targets, tags=done.tags, missing=done.missing or None)
        await stream.send(reply_frame(AuditReply(signed=seal_tags(self._key, said))))
        return _Walked(nonce, held, done.lengths, Walk(nonce, done.lengths, len(done.tags) // TAG), done.tags)

    async def _show(self, stream: Stream, request: AuditRequest, walked: _Walked | None) -> None:
        if walked is None or not walked.tags:
            raise BadInput("audit request: a show follows a walk on its stream, once")
        steps = request.show or []
        check_shown(steps, walked.walk.steps)
        places = [walked.walk.where(step, walked.tags) for step in steps]
        order = shown_targets(walked.walk, walked.tags, steps)
        shown = await self._transfer.audit_show([(walked.keys[target], leaf) for target, leaf in places])
        first_asked = list(dict.fromkeys(target for target, _leaf in places))
        lists = dict(zip(first_asked, shown.lists, strict=True))
        said = AuditLeaves(
            auditor=stream.peer,
            nonce=walked.nonce,
            shown=steps,
            roots=b"".join(shard_root(walked.lengths[target], lists[target]) for target in order),
            digests=b"".join(digest(leaf) for leaf in shown.leaves),
        )
        frames = [reply_frame(AuditReply(signed=seal_leaves(self._key, said)))]
        frames += [lists[target][at : at + _FRAME] for target in order for at in range(0, len(lists[target]), _FRAME)]
        await _send_all(stream, frames + shown.leaves)

    def _charge(self, peer: PeerId) -> None:
        now = self._clock()
        bucket = self._buckets.setdefault(peer, TokenBucket(RATE, BURST, now))
        self._buckets.move_to_end(peer)
        while len(self._buckets) > _MAX_PEERS:
            self._buckets.popitem(last=False)
        if not bucket.take(1, now):
            raise Busy("more audits than this node answers to one peer", hint="ask again in a minute")


class _Turns:
    """What may be under way at once: `most` in all, one of a peer; `Busy` beyond."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: set[PeerId] = set()

    @contextmanager
    def of(self, peer: PeerId) -> Iterator[None]:
        if peer in self._taken or len(self._taken) >= self._most:
            raise Busy("this node answers other audits now", hint="ask again in a minute")
        self._taken.add(peer)
        try:
            yield
        finally:
            self._taken.discard(peer)


async def _send_all(stream: Stream, frames: Sequence[bytes]) -> None:
    try:
        async with asyncio.timeout(SHOW_WITHIN):
            for frame in frames:
                await stream.send(frame)
    except TimeoutError:
        raise DeadlineExceeded(f"{stream.peer} didn't take what it asked to be shown within {SHOW_WITHIN:g} s") from None
