"""Asks peers for grants, with a deadline that lets a reader go on to the next holder in time."""

from __future__ import annotations

import asyncio

from node.grant_desk import GrantDesk
from node.network.interface import Network
from node.streams import StreamPool
from node.swarm.interface import Swarm
from protocol.errors import BadInput, DeadlineExceeded, PeerFault
from protocol.framing import pack
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.messages import GRANT_PROTOCOL, GrantReply, GrantRequest, parse_reply

GET_TIMEOUT = 1.0
PUT_TIMEOUT = 10.0
"""A put may make the other side pull a manifest and write an encoding first."""


class GrantBook:
    def __init__(self, network: Network, swarm: Swarm, desk: GrantDesk) -> None:
        self._network = network
        self._swarm = swarm
        self._desk = desk
        self._gets = StreamPool(network, GRANT_PROTOCOL)
        self._puts = StreamPool(network, GRANT_PROTOCOL)
        """Apart from the gets: a put may take seconds, and who queues behind it would look like a dead peer."""

    async def close(self) -> None:
        await asyncio.gather(self._gets.close(), self._puts.close())

    async def to_get(self, peer: PeerId, encoding: EncodingId, shards: list[int]) -> GrantReply:
        return await self._ask(self._gets, peer, GrantRequest(verb="get", encoding=encoding, shards=shards), GET_TIMEOUT)

    async def to_put(self, peer: PeerId, encoding: EncodingId, envelope: bytes, shard: int, model: ModelId) -> GrantReply:
        request = GrantRequest(verb="put", encoding=encoding, shards=[shard], model=model, envelope=envelope)
        return await self._ask(self._puts, peer, request, PUT_TIMEOUT)

    async def to_drop(self, peer: PeerId, encoding: EncodingId, shard: int) -> None:
        """Asks a holder to drop a shard this node put there."""
        frame = pack(GrantRequest(verb="drop", encoding=encoding, shards=[shard]))
        parse_reply(await self._puts.ask(peer, frame, PUT_TIMEOUT), GrantReply, f"drop at {peer}")

    async def _ask(self, pool: StreamPool, peer: PeerId, request: GrantRequest, timeout: float) -> GrantReply:
        if peer == self._network.peer_id:
            return await self._desk.decide(request, peer)
        try:
            reply = parse_reply(await pool.ask(peer, pack(request), timeout), GrantReply, f"grant from {peer}")
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
