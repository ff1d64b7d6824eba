"""Asks peers for grants, with a deadline that lets a reader go on to the next holder in time.

A question costs its peer some milliseconds of libp2p, more than sending a shard of a small group. So a reader says with `expect`
what it will want next: one question covers many groups, and its answers are kept for the moment they are wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from node.grant_desk import GrantDesk
from node.network.interface import Network
from node.streams import StreamPool
from node.swarm.interface import Swarm
from node.traffic import note
from node.transfer.jobs import GRANT_KEPT
from protocol.errors import BadInput, DeadlineExceeded, MfError, PeerFault
from protocol.framing import pack
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.messages import GRANT_PROTOCOL, GrantAsk, GrantReply, GrantRequest, parse_reply

log = logging.getLogger(__name__)
GET_TIMEOUT = 1.0
PUT_TIMEOUT = 10.0
"""A put may make the other side pull a manifest and write an encoding first."""
_KEPT_MOST = 8_192


@dataclass(frozen=True)
class _Coming:
    """Grants asked of a peer at once; the future gives them by encoding, and nothing for what was refused."""

    asked_at: float
    replies: asyncio.Task[dict[bytes, GrantReply]]


class GrantBook:
    def __init__(self, network: Network, swarm: Swarm, desk: GrantDesk) -> None:
        self._network = network
        self.me = network.peer_id
        self._swarm = swarm
        self._desk = desk
        self._gets = StreamPool(network, GRANT_PROTOCOL)
        self._puts = StreamPool(network, GRANT_PROTOCOL)
        """Apart from the gets: a put may take seconds, and who queues behind it would look like a dead peer."""
        self._coming: dict[tuple[PeerId, bytes], _Coming] = {}
        self._asking: dict[PeerId, asyncio.Task[dict[bytes, GrantReply]]] = {}

    async def close(self) -> None:
        for coming in self._coming.values():
            coming.replies.cancel()
        self._coming.clear()
        await asyncio.gather(self._gets.close(), self._puts.close())

    def expected(self, peer: PeerId, encoding: EncodingId) -> bool:
        """Whether a grant of `peer` is in store, or was asked for a moment ago, whatever came of it."""
        coming = self._coming.get((peer, encoding))
        return coming is not None and self._now() - coming.asked_at < GRANT_KEPT

    def expect(self, peer: PeerId, asks: Sequence[GrantAsk]) -> None:
        """Asks, in one question, for leave to get what isn't expected already; returns at once, faults are only logged."""
        new = [ask for ask in asks if not self.expected(peer, EncodingId(ask.encoding))]
        if not new:
            return
        if len(self._coming) + len(new) > _KEPT_MOST:
            self._coming = {key: coming for key, coming in self._coming.items() if self._now() - coming.asked_at < GRANT_KEPT}
        asking = self._asking.get(peer)
        coming = _Coming(self._now(), asyncio.create_task(self._ask_next(peer, new, asking), name=f"grants of {peer}"))
        self._asking[peer] = coming.replies
        coming.replies.add_done_callback(lambda task: task.cancelled() or task.exception())
        for ask in new:
            self._coming[peer, ask.encoding] = coming

    def in_store(self, peer: PeerId, encoding: EncodingId) -> GrantReply | None:
        """A grant that has come, given out once."""
        coming = self._coming.get((peer, encoding))
        if coming is None or not coming.replies.done() or not self.expected(peer, encoding):
            return None
        reply = _replies(coming).get(encoding)
        if reply is not None:
            del self._coming[peer, encoding]
        return reply

    async def to_get(self, peer: PeerId, encoding: EncodingId, shards: list[int]) -> GrantReply:
        coming = self._coming.get((peer, encoding))
        if coming is not None and self.expected(peer, encoding):
            await asyncio.wait([coming.replies])
            if (late := _late(coming)) is not None:
                # It has had its time; the next question is a new one.
                self._coming.pop((peer, encoding), None)
                raise DeadlineExceeded(late.message, details=late.details)
            if (reply := self.in_store(peer, encoding)) is not None:
                return reply
        return await self._ask(self._gets, peer, GrantRequest(verb="get", encoding=encoding, shards=shards), GET_TIMEOUT)

    async def held(self, peer: PeerId, encoding: EncodingId, shards: list[int]) -> list[int]:
        """Which of these shards lie there now, by the holder's own word: grants in store don't say."""
        reply = await self._ask(self._gets, peer, GrantRequest(verb="get", encoding=encoding, shards=shards), GET_TIMEOUT)
        return reply.held or []

    async def to_put(self, peer: PeerId, encoding: EncodingId, envelope: bytes, shard: int, model: ModelId) -> GrantReply:
        request = GrantRequest(verb="put", encoding=encoding, shards=[shard], model=model, envelope=envelope)
        return await self._ask(self._puts, peer, request, PUT_TIMEOUT)

    async def to_drop(self, peer: PeerId, encoding: EncodingId, shard: int) -> None:
        """Asks a holder to drop a shard this node put there."""
        frame = pack(GrantRequest(verb="drop", encoding=encoding, shards=[shard]))
        parse_reply(await self._puts.ask(peer, frame, PUT_TIMEOUT), GrantReply, f"drop at {peer}")

    async def to_renew(self, peer: PeerId, asks: Sequence[GrantAsk]) -> None:
        """Tells a holder that what this node put there is still wanted."""
        first, *also = asks
        request = GrantRequest(verb="renew", encoding=first.encoding, shards=first.shards, also=also or None)
        await self._ask(self._puts, peer, request, PUT_TIMEOUT)

    async def to_share(self, peer: PeerId, model: ModelId, asks: Sequence[GrantAsk]) -> None:
        """Tells a holder that these shards, which it keeps for another model, belong to `model` too."""
        first, *also = asks
        request = GrantRequest(verb="share", encoding=first.encoding, shards=first.shards, model=model, also=also or None)
        await self._ask(self._puts, peer, request, PUT_TIMEOUT)

    async def _ask_next(
        self, peer: PeerId, asks: Sequence[GrantAsk], before: asyncio.Task[dict[bytes, GrantReply]] | None
    ) -> dict[bytes, GrantReply]:
        """After the question `before`: what is needed first shall not share the peer's time with what is needed later."""
        if before is not None and not before.done():
            await asyncio.wait([before])
            if not before.cancelled() and (late := before.exception()) is not None:
                raise late
        try:
            return await self._ask_many(peer, asks)
        finally:
            if self._asking.get(peer) is asyncio.current_task():
                del self._asking[peer]

    async def _ask_many(self, peer: PeerId, asks: Sequence[GrantAsk]) -> dict[bytes, GrantReply]:
        first, *also = asks
        request = GrantRequest(verb="get", encoding=first.encoding, shards=first.shards, also=also or None)
        try:
            reply = await self._ask(self._gets, peer, request, GET_TIMEOUT)
        except DeadlineExceeded:
            raise
        except MfError as error:
            # Who needs one of these asks again by itself and gets the error then.
            log.debug("%s gave no grants ahead: %s", peer, error)
            return {}
        found = {first.encoding: reply}
        for ask, grant in zip(also, reply.also or [], strict=False):
            if grant is not None:
                found[ask.encoding] = GrantReply(grant=grant, urls=reply.urls, tls=reply.tls)
        return found

    async def _ask(self, pool: StreamPool, peer: PeerId, request: GrantRequest, timeout: float) -> GrantReply:
        if peer == self._network.peer_id:
            return await self._desk.decide(request, peer)
        try:
            asked = pack(request)
            answer = await pool.ask(peer, asked, timeout)
            note(len(asked), len(answer))
            reply = parse_reply(answer, GrantReply, f"grant from {peer}")
        except DeadlineExceeded:
            self._swarm.suspect(peer, "no answer to a grant request in time")
            raise
        except BadInput as error:
            if str(error).startswith("grant from"):
                raise PeerFault(f"{peer} answered a grant request with nonsense: {error}") from error
            raise
        if len(reply.tls) != 32 or not reply.urls or not all(url.startswith("https://") for url in reply.urls):
            raise PeerFault(f"{peer} gave a grant without a usable https address")
        return reply

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _late(coming: _Coming) -> DeadlineExceeded | None:
    error = None if coming.replies.cancelled() else coming.replies.exception()
    return error if isinstance(error, DeadlineExceeded) else None


def _replies(coming: _Coming) -> dict[bytes, GrantReply]:
    if coming.replies.cancelled() or coming.replies.exception() is not None:
        return {}
    return coming.replies.result()
