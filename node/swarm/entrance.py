"""The ways into swarms: a ticket, the peers known from before, and the door (the DHT), where holders of a model are found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from node.network.interface import Network
from node.swarm.announce import Announcer
from node.swarm.connections import Connections
from node.swarm.door import Door, Found, model_key
from node.swarm.keeper import Keeper
from node.swarm.supervisor import Supervisor
from node.swarm.trust import Trust
from protocol.errors import BadInput, MfError, Unavailable
from protocol.ids import ModelId, PeerId, model_text
from protocol.ticket import parse_ticket

log = logging.getLogger(__name__)

REACH = 8.0
_MESH_WAIT = 1.0
_FOUND_AT_ONCE = 8


class Entrance:
    """`greet_again` shows a peer what this node knows since a ticket; `banned` peers aren't asked; `now` is the wall's clock."""

    def __init__(
        self,
        network: Network,
        door: Door,
        connections: Connections,
        announcer: Announcer,
        trust: Trust,
        keeper: Keeper,
        supervisor: Supervisor,
        greet_again: Callable[[PeerId], Awaitable[None]],
        banned: Callable[[PeerId], bool],
        now: Callable[[], float],
    ) -> None:
        self._network, self._door, self._connections, self._announcer = network, door, connections, announcer
        self._trust, self._keeper, self._supervisor = trust, keeper, supervisor
        self._greet_again, self._banned, self._now = greet_again, banned, now

    async def join(self, ticket: str) -> int:
        """Peers reached. `Unavailable` when none was; `BadInput` for a bad ticket."""
        own = self._network.peer_id
        issuer, opened = parse_ticket(ticket, self._now())
        entries = [(PeerId(entry.peer), entry.addresses) for entry in opened.peers if entry.peer != own]
        if not entries:
            raise BadInput("the ticket leads to this node itself", hint="paste a ticket of another node")
        self._trust.adopt(issuer, opened)
        self._keeper.touch()
        await asyncio.gather(*(self._greet_again(link.peer) for link in self._connections.links()))
        reached = await self._connections.reach_some(entries, REACH)
        if not reached:
            asked = ", ".join(f"{peer} at {' '.join(addresses)}" for peer, addresses in entries)
            raise Unavailable(f"none of the ticket's peers was reached: {asked}", hint="ask for a fresh ticket; is a node of it running?")
        self._supervisor.spawn(self._enter_door(entries), "door")
        await self._mesh_at_once()
        log.info(
            "joined the swarm through %d peers", reached, extra={"event": "swarm_joined", "fields": {"reached": reached, "issuer": issuer}}
        )
        return reached

    async def go_back(self) -> None:
        """To the peers known from before the restart."""
        known = self._keeper.saved_peers()
        if known:
            await self._connections.reach_some(known, REACH)
            await self._enter_door(known)

    async def find(self, model: ModelId, timeout: float) -> None:
        """Looks the model up at the door and dials who is found there."""
        try:
            async with asyncio.timeout(timeout):
                found = await self._door.lookup(model_key(model), timeout * 0.6)
                await self._connections.reach_some(self._worth_asking(found), timeout)
        except (MfError, TimeoutError) as error:
            log.info("looking up %s: %s", model_text(model), str(error) or f"no end within {timeout:g} s")

    def _worth_asking(self, found: Sequence[Found]) -> list[tuple[PeerId, list[str]]]:
        connected = self._network.connected()
        others = [entry for entry in found if entry.peer != self._network.peer_id and not self._banned(entry.peer)]
        reachable = [(entry.peer, self._connections.allowed(entry.addresses)) for entry in others]
        return [(peer, addresses) for peer, addresses in reachable if addresses or peer in connected][:_FOUND_AT_ONCE]

    async def _enter_door(self, entries: list[tuple[PeerId, list[str]]]) -> None:
        await self._door.join(entries)
        self._announcer.hurry()

    async def _mesh_at_once(self) -> None:
        """Dials whoever the records just pulled name, so that the caller of `join` finds holders routable."""
        task = self._supervisor.spawn(self._connections.mesh_and_greet(), "first mesh")
        if task is not None:
            await asyncio.wait({task}, timeout=_MESH_WAIT)
