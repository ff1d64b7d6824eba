"""Lanes of this node's worker: connections over which it sends a step's result to the next stage's node by itself (runtime/lanes.py).

Each is made here, where peers are known: asked for like any connection for step frames (node/step_links.py), dialled, greeted, shut for
reading, and given to the worker with its key. It lives as long as that process. Where there is none, steps go by this node.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from node.network.interface import Network
from node.step_links import DIAL_SECONDS, RETRY, place_at
from node.worker import Worker
from protocol.errors import MfError
from protocol.ids import PeerId
from runtime.interface import DropLane, TakeLane

log = logging.getLogger(__name__)
MOST = 32
"""Peers at once; the one whose lane is oldest loses it."""


class Lanes:
    def __init__(self, network: Network, worker: Worker) -> None:
        self._network, self._worker = network, worker
        self._numbers: dict[PeerId, int] = {}
        self._life = 0
        self._next = 1
        self._making: set[PeerId] = set()
        self._not_before: dict[PeerId, float] = {}

    def lane(self, peer: PeerId) -> int | None:
        """The number of the worker's lane to `peer`, where it has one."""
        return self._numbers.get(peer) if self._worker.generation == self._life and self._worker.running else None

    def ended(self, peer: PeerId, lane: int) -> None:
        """It takes nothing any more: the worker said so, of each session that used it; there may be another one by then."""
        if self._numbers.get(peer) == lane:
            del self._numbers[peer]

    async def warm(self, peer: PeerId) -> None:
        """Makes one ahead of the first step; where there can't be one, that isn't tried again for a while."""
        now = asyncio.get_running_loop().time()
        useless = peer == self._network.peer_id or not self._worker.running or self._not_before.get(peer, 0.0) > now
        if useless or peer in self._making or self.lane(peer) is not None:
            return
        self._making.add(peer)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await self._make(peer)
        except (MfError, OSError, TimeoutError) as error:
            self._not_before[peer] = now + RETRY
            log.info("no lane to %s: %s", peer, error or "it took too long", extra={"event": "no_lane", "fields": {"peer": peer}})
        finally:
            self._making.discard(peer)

    async def _make(self, peer: PeerId) -> None:
        life = self._worker.generation
        host, reply = await place_at(self._network, peer, DIAL_SECONDS)
        sock = await _connected(host, reply.port)
        try:
            await asyncio.get_running_loop().sock_sendall(sock, reply.name)
            sock.shutdown(socket.SHUT_RD)
            number, self._next = self._next, self._next + 1
            await self._worker.take_lane(TakeLane(lane=number, key=reply.key), sock.fileno())
        finally:
            sock.close()
        if life != self._worker.generation:
            return  # that worker has ended meanwhile
        if life != self._life:
            self._life = life
            self._numbers.clear()
        if len(self._numbers) >= MOST:
            await self._worker.drop_lane(DropLane(lane=self._numbers.pop(next(iter(self._numbers)))))
        self._numbers[peer] = number


async def _connected(host: str, port: int) -> socket.socket:
    """By an address of numbers: nothing is looked up."""
    loop = asyncio.get_running_loop()
    family, kind, protocol, _name, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
