"""The network in memory: the same obligations as libp2p's, with seeded delays and faults, for tests and the simulator.

Every message between two nodes takes a seeded delay (20 ± 10 ms, one in a hundred stalls for a second), in order
per direction. Delays are the loop's timers, so that a test on virtual time waits for none of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.interface import Handler, PeerListener, StreamClosed
from node.network.streams import FrameStream, serve_stream
from protocol.errors import BadInput, Conflict, DeadlineExceeded, Unavailable
from protocol.ids import PeerId, peer_from_public

_STALL_SECONDS = 1.0
_APART = 1e-6
"""Two messages of one stream never share an instant: timers of one instant run in any order."""
_WINDOW = 256 * 1024
"""Bytes under way before a write waits for the other side, as yamux has it."""


class MemoryHub:
    """What lies between the nodes. `delay` seconds (least, most) a message; `stall` the share delayed by a second more."""

    def __init__(self, seed: int, delay: tuple[float, float] = (0.010, 0.030), stall: float = 0.01) -> None:
        self.rng = random.Random(seed)
        self._delay = delay
        self._stall = stall
        self._networks: dict[PeerId, MemoryNetwork] = {}
        self._by_address: dict[str, MemoryNetwork] = {}
        self._frozen: set[PeerId] = set()
        self._held: list[tuple[PeerId, PeerId, Callable[[], None]]] = []
        self._sides: dict[PeerId, int] = {}
        self._next_port = 1

    def attach(self, network: MemoryNetwork) -> str:
        if network.peer_id in self._networks:
            raise Conflict(f"{network.peer_id} is already running on this hub")
        number, self._next_port = self._next_port, self._next_port + 1
        address = f"/ip4/127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/4840"
        self._networks[network.peer_id] = self._by_address[address] = network
        return address

    def detach(self, network: MemoryNetwork) -> None:
        self._networks.pop(network.peer_id, None)
        self._by_address = {address: other for address, other in self._by_address.items() if other is not network}

    def at(self, address: str) -> MemoryNetwork | None:
        return self._by_address.get(address)

    def freeze(self, peer: PeerId) -> None:
        """The peer neither reads nor answers; its connections stand."""
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        self._frozen.discard(peer)
        self._release()

    def kill(self, peer: PeerId) -> None:
        """The peer is gone at once; the others see their connections end."""
        network = self._networks.get(peer)
        if network is not None:
            network.die()

    def partition(self, *sides: Sequence[PeerId]) -> None:
        """Nothing passes between peers of different sides, until `partition()` heals it."""
        self._sides = {peer: number for number, side in enumerate(sides) for peer in side}
        self._release()

    def reachable(self, one: PeerId, other: PeerId) -> bool:
        same_side = self._sides.get(one, -1) == self._sides.get(other, -1)
        return same_side and one not in self._frozen and other not in self._frozen

    def later(self, sender: PeerId, receiver: PeerId, after: float, action: Callable[[], None]) -> float:
        """Runs `action` at the receiver after a delay, not before the time `after`; returns that time."""
        loop = asyncio.get_running_loop()
        delay = self.rng.uniform(*self._delay) + (_STALL_SECONDS if self.rng.random() < self._stall else 0.0)
        when = max(loop.time() + delay, after + _APART)
        loop.call_at(when, self._deliver, sender, receiver, action)
        return when

    def _deliver(self, sender: PeerId, receiver: PeerId, action: Callable[[], None]) -> None:
        if self.reachable(sender, receiver):
            action()
        else:
            self._held.append((sender, receiver, action))

    def _release(self) -> None:
        held, self._held = self._held, []
        for sender, receiver, action in held:
            self._deliver(sender, receiver, action)


class _MemoryWire:
    """One end of a stream; `other` is the end at the peer."""

    def __init__(self, hub: MemoryHub, owner: PeerId, peer: PeerId) -> None:
        self._hub, self._owner, self._peer = hub, owner, peer
        self.stream: FrameStream | None = None
        self.other: _MemoryWire | None = None
        self._last = 0.0
        self._dead = False
        self._on_the_way = 0

    def _post(self, action: Callable[[FrameStream], None], size: int = 0) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._dead:
            done.set_exception(StreamClosed(f"the stream to {self._peer} is closed"))
            return done

        self._on_the_way += size

        def arrive() -> None:
            self._on_the_way -= size
            if self.other is not None and self.other.stream is not None and not self.other._dead:
                action(self.other.stream)
            if not done.done():
                done.set_result(None)

        self._last = self._hub.later(self._owner, self._peer, self._last, arrive)
        if self._on_the_way <= _WINDOW:
            done.set_result(None)
        return done

    def write(self, data: bytes) -> asyncio.Future[None]:
        return self._post(lambda stream: stream.fed(data), len(data))

    def finish(self) -> asyncio.Future[None]:
        self._post(lambda stream: stream.ended_with(None))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def reset(self) -> None:
        if not self._dead:
            self._post(lambda stream: _broken(stream, f"{self._owner} reset the stream"))
            self._dead = True

    def cut(self, why: str) -> None:
        """The connection is gone: this end at once."""
        self._dead = True
        if self.stream is not None:
            _broken(self.stream, why)


def _broken(stream: FrameStream, why: str) -> None:
    stream.ended_with(StreamClosed(why))
    wire = stream.wire
    if isinstance(wire, _MemoryWire):
        wire._dead = True


class MemoryNetwork:
    """`Network` over a `MemoryHub`."""

    def __init__(self, hub: MemoryHub, key: Ed25519PrivateKey) -> None:
        self._hub = hub
        self._peer_id = peer_from_public(key.public_key().public_bytes_raw())
        self._address: str | None = None
        self._handlers: dict[str, Handler] = {}
        self._listeners: list[PeerListener] = []
        self._links: dict[PeerId, list[_MemoryWire]] = {}
        self._known: dict[PeerId, list[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> list[str]:
        return [self._address] if self._address else []

    async def start(self) -> None:
        self._address = self._hub.attach(self)

    async def stop(self) -> None:
        self.die()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def die(self) -> None:
        self._hub.detach(self)
        self._address = None
        for peer in list(self._links):
            self._drop(peer)
        for task in self._tasks:
            task.cancel()

    async def dial(self, peer: PeerId, addresses: Sequence[str], timeout: float = 3.0) -> None:
        if addresses:
            self._known[peer] = list(addresses)
        if peer in self._links or peer == self._peer_id:
            return
        tried = self._known.get(peer, [])
        found = next((network for address in tried if (network := self._hub.at(address)) and network.peer_id == peer), None)
        if found is None or self._address is None:
            await asyncio.sleep(min(timeout, 0.02))
            raise Unavailable(f"{peer} can't be reached", details={"tried": tried}, hint=f"tried {', '.join(tried) or 'no address'}")
        if not await self._round_trip(peer, timeout):
            raise Unavailable(f"{peer} didn't answer within {timeout} s", details={"tried": tried}, hint=f"tried {', '.join(tried)}")
        if found.addresses() and self._address:
            self._link(peer)
            found._link(self._peer_id)

    async def _round_trip(self, peer: PeerId, timeout: float) -> bool:
        arrived = asyncio.Event()

        def answer() -> None:
            self._hub.later(peer, self._peer_id, 0.0, arrived.set)

        self._hub.later(self._peer_id, peer, 0.0, answer)
        try:
            async with asyncio.timeout(timeout):
                await arrived.wait()
        except TimeoutError:
            return False
        return True

    async def open(self, peer: PeerId, protocol: str, timeout: float = 3.0) -> FrameStream:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        if peer not in self._links:
            await self.dial(peer, [], timeout)
        if not await self._round_trip(peer, max(end - loop.time(), 0.001)):
            raise DeadlineExceeded(f"{peer} didn't open {protocol} within {timeout} s")
        network = self._hub._networks.get(peer)
        if network is None or peer not in self._links:
            raise StreamClosed(f"the connection to {peer} has ended")
        if protocol not in network._handlers:
            raise Unavailable(f"{peer} doesn't serve {protocol}")
        wire, far = _MemoryWire(self._hub, self._peer_id, peer), _MemoryWire(self._hub, peer, self._peer_id)
        wire.other, far.other = far, wire
        wire.stream = FrameStream(peer, protocol, wire)
        far.stream = FrameStream(self._peer_id, protocol, far)
        self._keep(peer, wire)
        network._keep(self._peer_id, far)
        network._accept(far.stream)
        return wire.stream

    def _keep(self, peer: PeerId, wire: _MemoryWire) -> None:
        live = [other for other in self._links.get(peer, []) if not other._dead]
        self._links[peer] = [*live, wire]

    def _accept(self, stream: FrameStream) -> None:
        task = asyncio.create_task(serve_stream(self._handlers[stream.protocol], stream), name=f"serve {stream.protocol}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def serve(self, protocol: str, handler: Handler) -> None:
        if not protocol.startswith("/"):
            raise BadInput(f"a protocol id begins with /: {protocol!r}")
        self._handlers[protocol] = handler

    def connected(self) -> list[PeerId]:
        return list(self._links)

    def host_of(self, peer: PeerId) -> str | None:
        return None

    def listen_peers(self, listener: PeerListener) -> None:
        self._listeners.append(listener)

    async def disconnect(self, peer: PeerId) -> None:
        self._drop(peer)

    def _link(self, peer: PeerId) -> None:
        if peer not in self._links:
            self._links[peer] = []
            self._tell(peer, True)

    def _drop(self, peer: PeerId) -> None:
        """Ends the connection here at once, at the other side too."""
        for owner, other in ((self, peer), (self._hub._networks.get(peer), self._peer_id)):
            if owner is None:
                continue
            wires = owner._links.pop(other, None)
            if wires is not None:
                for wire in wires:
                    wire.cut(f"the connection to {other} has ended")
                owner._tell(other, False)

    def _tell(self, peer: PeerId, connected: bool) -> None:
        for listener in self._listeners:
            listener(peer, connected)
