"""Whom this node is connected to, and one link to each: dialling, dialling again, a full mesh up to 50 peers.

Each side dials whoever it knows and isn't connected to. A lost connection is tried again at once, then with pauses that
double up to a minute. Beyond 50 connections no more are made; since the order is random, the mesh becomes a random graph.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from node.network.addresses import check_address, links_of
from node.network.interface import Network
from node.swarm.link import Heard, Link
from node.swarm.liveness import Liveness
from node.swarm.peers import PeerBook
from node.swarm.supervisor import Supervisor
from protocol.errors import MfError, Unavailable
from protocol.ids import PeerId
from protocol.messages import SWARM_PROTOCOL

log = logging.getLogger(__name__)
Links = list[ipaddress.IPv4Network | ipaddress.IPv6Network]

MESH = 50
DIAL = 3.0
REDIAL = 1.0
_AT_ONCE = 8
_GRACE = 0.5
_LONGEST_PAUSE = 60.0
_MAX_PAUSES = 8_192


_MANY, _TURNS = 1_024, 16
"""Records of a first comparison after which it goes on, and for how many questions at most."""


@dataclass(frozen=True)
class Hooks:
    """`greet` and `sync` speak on a new link; `left(peer, was routable, reason)` is told of a connection lost and of one lost for good."""

    heard: Heard
    greet: Callable[[Link, float], Awaitable[None]]
    sync: Callable[[Link, int], Awaitable[int]]
    unwanted: Callable[[PeerId], bool]
    met: Callable[[PeerId], None]
    left: Callable[[PeerId, bool, str], None]


class Connections:
    def __init__(
        self,
        network: Network,
        peers: PeerBook,
        liveness: Liveness,
        hooks: Hooks,
        supervisor: Supervisor,
        monotonic: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._network = network
        self._peers = peers
        self._liveness = liveness
        self._hooks = hooks
        self._supervisor = supervisor
        self._monotonic = monotonic
        self._rng = rng
        self._links: dict[PeerId, Link] = {}
        self._opening: dict[PeerId, asyncio.Lock] = {}
        self._synced: dict[PeerId, asyncio.Event] = {}
        self._pauses: dict[PeerId, tuple[int, float]] = {}
        self._given: dict[PeerId, list[str]] = {}
        self._dialling: set[PeerId] = set()

    def links(self) -> list[Link]:
        return [link for link in self._links.values() if not link.closed.is_set()]

    def close(self) -> None:
        for link in list(self._links.values()):
            link.close()

    def on_peer(self, peer: PeerId, up: bool) -> None:
        """The network's word: the first connection to a peer stands, or the last has gone."""
        if up:
            self._pauses.pop(peer, None)
            self._synced.setdefault(peer, asyncio.Event())
            self._liveness.connected(peer, self._monotonic())
            self._hooks.met(peer)
            self._supervisor.spawn(self.link(peer, DIAL), f"swarm stream to {peer}")
            return
        link = self._links.pop(peer, None)
        if link is not None:
            link.close()
        self._synced.pop(peer, None)
        self._opening.pop(peer, None)
        was = self._liveness.lost(peer)
        self._hooks.left(peer, was, "the connection was lost")
        self._supervisor.spawn(self._again(peer), f"reconnect to {peer}")

    async def link(self, peer: PeerId, timeout: float) -> Link:
        """The open and greeted link to a connected peer, made when there is none. An `MfError` when it can't be."""
        link = self._links.get(peer)
        if link is not None and not link.closed.is_set():
            return link
        if peer not in self._network.connected():
            raise Unavailable(f"not connected to {peer}")
        async with self._opening.setdefault(peer, asyncio.Lock()):
            link = self._links.get(peer)
            if link is not None and not link.closed.is_set():
                return link
            return await self._open(peer, timeout)

    async def _open(self, peer: PeerId, timeout: float) -> Link:
        stream = await self._network.open(peer, SWARM_PROTOCOL, timeout)
        link = Link(stream, self._monotonic, self._hooks.heard)
        link.start(self._supervisor)
        try:
            await self._hooks.greet(link, timeout)
        except BaseException:
            link.close()
            raise
        self._links[peer] = link
        self._supervisor.spawn(self._sync(link), f"first comparison with {peer}")
        return link

    async def _sync(self, link: Link) -> None:
        """A peer is reached once its first records came; of a large swarm more follow."""
        try:
            taken = await self._hooks.sync(link, 1)
        finally:
            self._synced.setdefault(link.peer, asyncio.Event()).set()
        if taken >= _MANY:
            await self._hooks.sync(link, _TURNS)

    async def reach(self, peer: PeerId, addresses: list[str], timeout: float) -> bool:
        """Dials, greets and compares records with a peer; False (logged) when any of it fails within `timeout`."""
        try:
            async with asyncio.timeout(timeout):
                await self._network.dial(peer, addresses, min(DIAL, timeout))
                self._given[peer] = addresses
                await self.link(peer, timeout)
                await self._synced.setdefault(peer, asyncio.Event()).wait()
            return True
        except (MfError, TimeoutError) as error:
            log.info("%s wasn't reached: %s", peer, str(error) or f"no answer within {timeout:g} s")
            return False

    async def reach_some(self, entries: list[tuple[PeerId, list[str]]], timeout: float) -> int:
        """Reaches as many as are there: half a second after the first, the slow ones go on in the background."""
        reached: list[PeerId] = []

        async def try_one(peer: PeerId, addresses: list[str]) -> None:
            if await self.reach(peer, addresses, timeout):
                reached.append(peer)

        tasks = {task for entry in entries if (task := self._supervisor.spawn(try_one(*entry), f"reaching {entry[0]}"))}
        while tasks and not reached:
            _done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE)
        return len(reached)

    def allowed(self, addresses: Sequence[str]) -> list[str]:
        """Those of a stranger's addresses that may be dialled."""
        links = links_of(self._network.addresses())
        return [address for address in addresses if check_address(address, links)]

    def wanted(self) -> list[tuple[PeerId, list[str]]]:
        """Peers to dial now, in random order, at most as many as the mesh lacks."""
        connected, now = set(self._network.connected()), self._monotonic()
        room = MESH - len(connected) - len(self._dialling)
        links = links_of(self._network.addresses())
        found: list[tuple[PeerId, list[str]]] = []
        for peer in self._known():
            if peer == self._network.peer_id or peer in connected or peer in self._dialling or self._hooks.unwanted(peer):
                continue
            if self._pauses.get(peer, (0, 0.0))[1] > now:
                continue
            addresses = self._addresses(peer, links)
            if addresses:
                found.append((peer, addresses))
        self._rng.shuffle(found)
        return found[: max(0, min(room, _AT_ONCE))]

    async def mesh(self) -> None:
        """One round of dialling."""
        await asyncio.gather(*(self._dial(peer, addresses) for peer, addresses in self.wanted()))

    async def mesh_and_greet(self) -> None:
        """Rounds of dialling until nobody is left to dial, each peer greeted."""
        while wanted := self.wanted():
            await asyncio.gather(*(self._dial(peer, addresses) for peer, addresses in wanted))
            await asyncio.gather(*(self._greeted(peer) for peer, _addresses in wanted))

    async def _greeted(self, peer: PeerId) -> None:
        try:
            await self.link(peer, DIAL)
        except MfError as error:
            log.debug("greeting %s: %s", peer, error)

    async def _dial(self, peer: PeerId, addresses: list[str]) -> None:
        self._dialling.add(peer)
        try:
            await self._network.dial(peer, addresses, DIAL)
        except MfError as error:
            self._pause(peer)
            log.debug("dialling %s: %s", peer, error)
        finally:
            self._dialling.discard(peer)

    async def _again(self, peer: PeerId) -> None:
        addresses = self._addresses(peer, links_of(self._network.addresses()))
        try:
            if not addresses:
                raise Unavailable("no address of it is known")
            await self._network.dial(peer, addresses, REDIAL)
        except MfError as error:
            if peer not in self._network.connected():
                self._pause(peer)
                self._hooks.left(peer, False, f"gone: {error.message}")

    def _known(self) -> list[PeerId]:
        return list(dict.fromkeys([*(kept.signer for kept in self._peers.all()), *self._given]))

    def _addresses(self, peer: PeerId, links: Links) -> list[str]:
        """Where to dial a peer: what its record says, as far as that may be dialled, and what a ticket said."""
        told = [address for address in self._peers.addresses(peer) if check_address(address, links)]
        return list(dict.fromkeys([*told, *self._given.get(peer, [])]))

    def _pause(self, peer: PeerId) -> None:
        failures = self._pauses.get(peer, (0, 0.0))[0] + 1
        pause = min(_LONGEST_PAUSE, 2.0 ** (failures - 1)) * self._rng.uniform(0.75, 1.25)
        self._pauses[peer] = (failures, self._monotonic() + pause)
        if failures > 6:
            self._given.pop(peer, None)
        while len(self._pauses) > _MAX_PAUSES:
            self._pauses.pop(next(iter(self._pauses)))
