"""The door: finds who announced a model. Our own Kademlia over the `Network` interface, wire of libp2p's kad-dht.

Problem: stock lookups wait ten seconds for a frozen peer, answer from their own cache for ever and store 10 of 60.
Choice: an iterative lookup with six asked at once; one that is silent for 0.25 s no longer counts among the six, so
frozen peers cost parallel tries, not waiting; it stops soon after the first finding. Streams to peers are kept and
used again. The same code runs over libp2p and in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence

from node.network.addresses import Network as Link
from node.network.addresses import check_address, links_of
from node.network.interface import Network, Stream
from node.network.kad_lookup import HARD, Walk
from node.network.kad_table import K, Table, peer_bytes, position
from node.network.kad_wire import ADD_PROVIDER, FIND_NODE, GET_PROVIDERS, PING, Found, KadMessage, decode, encode
from node.network.provider_store import ProviderStore
from node.network.stream_pool import StreamPool
from protocol.errors import DeadlineExceeded, MfError
from protocol.ids import ModelId, PeerId
from protocol.messages import KAD_PROTOCOL

REANNOUNCE = 3_600.0
REFRESH = 600.0
_TICK = 30.0
_PACE = 0.1
_IDLE = 120.0
_GRACE = 0.05
_LATE = 0.1
"""A timer of ours that woke so much late says that this node was busy, not that the peer was silent."""
log = logging.getLogger(__name__)

__all__ = ["Directory", "Found", "model_key"]


def model_key(model: ModelId) -> bytes:
    """The DHT key of a model: a sha2-256 multihash."""
    return b"\x12\x20" + hashlib.sha256(b"mf/model/1" + model).digest()


class Directory:
    """Construct before `network.start()`: it serves `/mf/kad/1`. `clock` gives monotonic seconds, the loop's by default.

    `in_use(peer)`: whether others still want the connection to a peer; others over `max_connections` are closed, oldest first.
    """

    def __init__(
        self,
        network: Network,
        rng: random.Random | None = None,
        clock: Callable[[], float] | None = None,
        *,
        cap: int | None = None,
        max_connections: int = 100,
        in_use: Callable[[PeerId], bool] = lambda _: False,
    ) -> None:
        self._network = network
        self._rng = rng or random.SystemRandom()
        self._own_clock = clock
        self.table = Table(network.peer_id, self._rng, K, cap)
        self.store = ProviderStore(self._rng)
        self._pool = StreamPool(network, KAD_PROTOCOL, max_connections, in_use)
        self._announced: OrderedDict[bytes, float] = OrderedDict()
        self._next_announcement = 0.0
        self._background: set[asyncio.Task[object]] = set()
        self._links: tuple[tuple[str, ...], list[Link]] = ((), [])
        network.serve(KAD_PROTOCOL, self._respond)

    def _now(self) -> float:
        return self._own_clock() if self._own_clock is not None else asyncio.get_running_loop().time()

    @property
    def announced(self) -> list[bytes]:
        return list(self._announced)

    # For callers

    async def join(self, peers: Sequence[tuple[PeerId, list[str]]], timeout: float = 3.0) -> int:
        """Meets the peers of a ticket (their addresses need no check) and, through them, the neighbours. Returns how many answered."""
        others = [(peer, addresses) for peer, addresses in peers if peer != self._network.peer_id]
        met = await asyncio.gather(*(self._meet(peer, addresses, timeout) for peer, addresses in others))
        if any(met):
            await self.refresh()
        return sum(met)

    async def refresh(self) -> None:
        """Looks up our own place and a random one, so that the table fills and others learn of us."""
        await self._walk(position(peer_bytes(self._network.peer_id)), KadMessage(FIND_NODE, peer_bytes(self._network.peer_id)), 3.0)
        key = self._rng.randbytes(34)
        await self._walk(position(key), KadMessage(FIND_NODE, key), 2.0)

    async def announce(self, key: bytes) -> int:
        """Leaves a record for `key` with the 20 closest nodes; returns how many gave a receipt. Renewed by `maintain`."""
        self._announced[key] = self._now()
        await self._pace()
        own = self._own()
        self.store.add(key, own.peer, own.addresses, self._now())
        walk = await self._walk(position(key), KadMessage(FIND_NODE, key), 3.0)
        copies = await asyncio.gather(*(self._leave(found, key, own) for found in walk.closest(K)))
        return sum(copies)

    def withdraw(self, key: bytes) -> None:
        """Stops renewing an announcement; the copies elsewhere expire."""
        self._announced.pop(key, None)
        self.store.remove(key, self._network.peer_id)

    async def lookup(self, key: bytes, timeout: float = 2.0) -> list[Found]:
        """Peers that announced `key`, without this node; empty when none was found within `timeout` seconds."""
        found: dict[PeerId, Found] = {}
        loop = asyncio.get_running_loop()

        def look(reply: KadMessage, walk: Walk) -> None:
            fresh = [self._allowed(one) for one in reply.providers if one.peer != self._network.peer_id]
            if fresh and not found:
                walk.end_by(loop.time() + _GRACE)
            found.update({one.peer: one for one in fresh})

        for provider in self.store.get(key, self._now()):
            if provider.peer != self._network.peer_id:
                found[provider.peer] = Found(provider.peer, provider.addresses)
        if not found:
            await self._walk(position(key), KadMessage(GET_PROVIDERS, key), timeout, look)
        return list(found.values())

    async def maintain(self) -> None:
        """Runs until cancelled: renews announcements hourly, drops what has expired, asks suspects again, refreshes the table."""
        refreshed = self._now()
        while True:
            await asyncio.sleep(_TICK)
            self.store.expire(self._now())
            for contact in self.table.suspects():
                self._spawn(self._ask(Found(contact.peer, contact.addresses), KadMessage(PING)))
            if self._now() - refreshed >= REFRESH:
                refreshed = self._now()
                await self.refresh()
            for key in [key for key, at in self._announced.items() if self._now() - at >= REANNOUNCE]:
                await self.announce(key)

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._pool.close()

    # Asking

    async def _meet(self, peer: PeerId, addresses: list[str], timeout: float) -> bool:
        try:
            await self._network.dial(peer, addresses, timeout)
        except MfError as error:
            log.info("a ticket's peer can't be reached: %s", error, extra={"event": "join_failed", "fields": {"peer": peer}})
            return False
        return await self._ask(Found(peer, addresses), KadMessage(FIND_NODE, peer_bytes(self._network.peer_id)), timeout) is not None

    async def _walk(
        self, place: int, request: KadMessage, timeout: float, look: Callable[[KadMessage, Walk], None] = lambda _reply, _walk: None
    ) -> Walk:
        async def ask(found: Found) -> KadMessage | None:
            return await self._ask(found, request)

        def learn(reply: KadMessage) -> list[Found]:
            allowed = (self._allowed(one) for one in reply.closer if one.peer != self._network.peer_id)
            return [one for one in allowed if self._worth_asking(one)]

        start = [Found(contact.peer, contact.addresses) for contact in self.table.closest(place)]
        walk = Walk(place, start, ask, learn, look)
        await walk.run(timeout)
        for task in walk.unfinished():
            self._keep(task)
        return walk

    def _worth_asking(self, found: Found) -> bool:
        contact = self.table.get(found.peer)
        return bool(found.addresses) and (contact is None or contact.misses == 0)

    async def _ask(self, found: Found, request: KadMessage, timeout: float = HARD) -> KadMessage | None:
        """The reply, None for a miss. Our own record goes along, so that who is asked learns of us."""
        own = KadMessage(request.kind, request.key, [self._own()], request.providers)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        try:
            reply = decode(await self._pool.ask(found, [encode(own)], timeout))
        except MfError as error:
            if loop.time() - end < _LATE:
                self.table.missed(found.peer)
            log.debug("%s gave no answer: %s", found.peer, error)
            return None
        self.table.seen(found.peer, found.addresses, self._now())
        return reply

    async def _leave(self, found: Found, key: bytes, own: Found) -> bool:
        """Leaves a record and reads it back on the same stream: the receipt."""
        frames = [encode(KadMessage(ADD_PROVIDER, key, providers=[own])), encode(KadMessage(GET_PROVIDERS, key, [own]))]
        try:
            reply = decode(await self._pool.ask(found, frames, HARD))
        except MfError as error:
            log.debug("%s took no record: %s", found.peer, error)
            return False
        return any(one.peer == own.peer for one in reply.providers)

    async def _pace(self) -> None:
        now = self._now()
        slot = self._next_announcement = max(now, self._next_announcement + _PACE)
        if slot > now:
            await asyncio.sleep(slot - now)

    # Answering

    async def _respond(self, stream: Stream) -> None:
        while True:
            try:
                request = decode(await stream.receive(_IDLE))
            except DeadlineExceeded:
                return  # nobody asks over it any more, which is no fault; who does later opens another
            self._notice(stream.peer, request)
            reply = self._reply(stream.peer, request)
            if reply is not None:
                await stream.send(encode(reply))

    def _notice(self, peer: PeerId, request: KadMessage) -> None:
        """Keeps who asks, by the record it sent of itself and never of another."""
        own = next((self._allowed(one) for one in request.closer if one.peer == peer), None)
        if own is not None and own.addresses:
            self.table.seen(peer, own.addresses, self._now())

    def _reply(self, peer: PeerId, request: KadMessage) -> KadMessage | None:
        if request.kind == ADD_PROVIDER:
            own = next((self._allowed(one) for one in request.providers if one.peer == peer), None)
            if own is not None and request.key:
                self.store.add(request.key, peer, own.addresses, self._now())
            return None
        if request.kind == PING:
            return KadMessage(PING)
        near = self.table.closest(position(request.key))
        closer = [Found(contact.peer, contact.addresses) for contact in near if contact.peer != peer]
        if request.kind == FIND_NODE:
            return KadMessage(FIND_NODE, request.key, closer)
        providers = [Found(one.peer, one.addresses) for one in self.store.get(request.key, self._now())]
        return KadMessage(GET_PROVIDERS, request.key, closer, providers)

    # Small things

    def _own(self) -> Found:
        return Found(self._network.peer_id, self._network.addresses())

    def _allowed(self, found: Found) -> Found:
        listening = tuple(self._network.addresses())
        if self._links[0] != listening:
            self._links = (listening, links_of(listening))
        return Found(found.peer, [address for address in found.addresses if check_address(address, self._links[1])])

    def _spawn(self, work: object) -> None:
        self._keep(asyncio.ensure_future(work))  # type: ignore[call-overload]

    def _keep(self, task: asyncio.Task[object]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)
