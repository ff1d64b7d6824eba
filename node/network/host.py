"""`Network` over libp2p: dialling, streams and their handlers. What is special about this libp2p lies in `libp2p_host`."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient, MultiselectClientError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node.network.addresses import expand_listen, parse_address
from node.network.bridge import Bridge, BridgeStopped
from node.network.interface import Handler, PeerListener, StreamClosed
from node.network.libp2p_host import Watch, abort, build_host, cause, try_port, tune_libp2p
from node.network.streams import FrameStream, serve_stream
from node.network.wire import TrioWire
from protocol.errors import BadInput, Conflict, DeadlineExceeded, MfError, Unavailable
from protocol.ids import PeerId, peer_from_public

MAX_CONNECTIONS = 512
_MAX_KNOWN = 4_096
_MAX_INBOUND_STREAMS = 256
"""Streams of one peer served at a time."""
_STAGGER = 0.1
_NEVER = 86_400
log = logging.getLogger(__name__)
T = TypeVar("T")


class LibP2PNetwork:
    """`Network` on libp2p. `listen`: multiaddrs like /ip4/127.0.0.1/tcp/0; 0.0.0.0 listens on all interfaces."""

    def __init__(self, key: Ed25519PrivateKey, listen: Sequence[str], max_connections: int = MAX_CONNECTIONS) -> None:
        self._key = key
        self._listen = list(listen)
        self._max_connections = max_connections
        self._peer_id = peer_from_public(key.public_key().public_bytes_raw())
        self._handlers: dict[str, Handler] = {}
        self._listeners: list[PeerListener] = []
        self._known: OrderedDict[PeerId, list[str]] = OrderedDict()
        self._dials: dict[tuple[PeerId, tuple[str, ...]], asyncio.Future[list[str]]] = {}
        self._connected: set[PeerId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbound: dict[PeerId, int] = {}
        self._addresses: list[str] = []
        self._bridge: Bridge | None = None
        self._host: Any = None
        self._swarm: Any = None
        self._stopping: trio.Event | None = None
        self._served: asyncio.Future[None] | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> list[str]:
        return list(self._addresses)

    def serve(self, protocol: str, handler: Handler) -> None:
        if not protocol.startswith("/"):
            raise BadInput(f"a protocol id begins with /: {protocol!r}")
        self._handlers[protocol] = handler

    def connected(self) -> list[PeerId]:
        return list(self._connected)

    def host_of(self, peer: PeerId) -> str | None:
        living = [one for one in self._swarm.connections.get(ID.from_string(peer), []) if not one.is_closed] if self._swarm else []
        for connection in living:
            remote = connection.muxed_conn.get_remote_address()
            if remote is not None:
                return str(remote[0])
        return None

    def listen_peers(self, listener: PeerListener) -> None:
        self._listeners.append(listener)

    # Starting and stopping

    async def start(self) -> None:
        tune_libp2p()
        wanted = [parse_address(address) for address in self._listen]
        for (ip, port), address in zip(wanted, self._listen, strict=True):
            try_port(ip, port, address)
        self._bridge = await Bridge.acquire()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._served = self._bridge.submit(self._serve, ready)
        await asyncio.wait([ready, self._served], return_when=asyncio.FIRST_COMPLETED, timeout=10)
        if not ready.done():
            served, self._served = self._served, None
            await self._bridge.release()
            fault = served.exception() if served.done() and not served.cancelled() else None
            raise fault if isinstance(fault, MfError) else Conflict(f"libp2p didn't start on {', '.join(self._listen)}: {fault}")
        log.info("listening", extra={"event": "network_listening", "fields": {"peer": self._peer_id, "addresses": self._addresses}})

    async def stop(self) -> None:
        """Within 2 s: handlers are cancelled, connections told or cut, trio ended when nobody else uses it."""
        if self._bridge is None:
            return
        bridge, self._bridge = self._bridge, None
        for task in self._tasks:
            task.cancel()
        if self._served is not None and self._stopping is not None:
            bridge.call_soon(self._end)
            await asyncio.wait([self._served], timeout=1.2)
        await bridge.release()
        if self._served is not None and self._served.done() and not self._served.cancelled():
            self._served.exception()
        for peer in list(self._connected):
            self._set_connected(peer, False)
        self._addresses = []

    def _end(self) -> None:
        """In trio: sockets first, so that nothing that ends can wait for a peer."""
        for connections in list(self._swarm.connections.values()):
            for connection in list(connections):
                abort(connection)
        if self._stopping is not None:
            self._stopping.set()

    def _build(self) -> None:
        self._host = build_host(self._key)
        self._swarm = self._host.get_network()
        self._swarm.register_notifee(Watch(self._changed))
        for protocol in self._handlers:
            self._host.set_stream_handler(protocol, self._accept)

    async def _serve(self, ready: asyncio.Future[None]) -> None:
        """In trio: the host's whole life."""
        self._stopping = trio.Event()
        self._build()
        async with background_trio_service(self._swarm):
            for address in self._listen:
                if not await self._swarm.listen(Multiaddr(address)):
                    raise Conflict(f"can't listen on {address}: taken or not an address of this machine")
            bound = [str(found) for listener in self._swarm.listeners.values() for found in listener.get_addrs()]
            self._addresses = expand_listen(bound)
            if not ready.done():
                ready.set_result(None)
            await self._stopping.wait()

    # Peers

    def _changed(self, connection: Any) -> None:
        peer = PeerId(str(connection.muxed_conn.peer_id))
        living = [one for one in self._swarm.connections.get(connection.muxed_conn.peer_id, []) if not one.is_closed]
        if living and connection in living and len(self._connected) >= self._max_connections and peer not in self._connected:
            log.info("a connection over the cap is closed", extra={"event": "connection_refused", "fields": {"peer": peer}})
            if self._bridge is not None:
                self._bridge.spawn(self._close_connections, connection.muxed_conn.peer_id)
            return
        self._set_connected(peer, bool(living))

    def _set_connected(self, peer: PeerId, connected: bool) -> None:
        if connected == (peer in self._connected):
            return
        if connected:
            self._connected.add(peer)
        else:
            self._connected.discard(peer)
        for listener in self._listeners:
            listener(peer, connected)

    async def disconnect(self, peer: PeerId) -> None:
        await self._in_trio(self._close_connections, ID.from_string(peer), timeout=2.0, what=f"disconnecting {peer}")

    async def _close_connections(self, peer: ID) -> None:
        connections = list(self._swarm.connections.get(peer, []))
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(self._close_connection, connection)

    async def _close_connection(self, connection: Any) -> None:
        async def close(done: trio.Event) -> None:
            await connection.close()
            done.set()

        finished = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close, finished)
            with trio.move_on_after(0.5):
                await finished.wait()
            if not finished.is_set():
                abort(connection)

    async def dial(self, peer: PeerId, addresses: Sequence[str], timeout: float = 3.0) -> None:
        if addresses:
            self._remember(peer, addresses)
        if peer in self._connected or peer == self._peer_id:
            return
        tried = self._known.get(peer, [])
        if not tried:
            raise Unavailable(f"no address of {peer} is known")
        # one dial per peer and set of addresses: whoever brings a new address must not be told that old ones failed
        name = (peer, tuple(tried))
        attempt = self._dials.get(name)
        if attempt is None or attempt.done():
            attempt = self._dials[name] = self._submit(self._dial, peer, list(tried), max(timeout, 3.0))
            attempt.add_done_callback(lambda _: self._dials.pop(name, None))
        done, _ = await asyncio.wait([attempt], timeout=timeout)
        if not done:
            raise Unavailable(f"{peer} didn't answer within {timeout} s", hint=f"tried {', '.join(tried)}", details={"tried": tried})
        failures = attempt.result()
        if failures and peer not in self._connected:
            raise Unavailable(f"{peer} can't be reached: {'; '.join(failures)}", details={"tried": tried})

    def _remember(self, peer: PeerId, addresses: Sequence[str]) -> None:
        good = []
        for address in addresses[:16]:
            try:
                ip, port = parse_address(address)
            except BadInput as error:
                log.debug("an address of %s is left out: %s", peer, error)
                continue
            if port:
                good.append(f"/{'ip6' if ':' in ip else 'ip4'}/{ip}/tcp/{port}")
        self._known[peer] = good
        self._known.move_to_end(peer)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    async def _dial(self, peer: PeerId, addresses: list[str], timeout: float) -> list[str]:
        """In trio: the first address that answers wins; else what each said. A dial may be cut short: nothing uses its connection yet."""
        target = ID.from_string(peer)
        failures: list[str] = []
        won: list[Any] = []
        with trio.move_on_after(timeout) as scope:
            async with trio.open_nursery() as nursery:

                async def attempt(address: str, wait: float) -> None:
                    await trio.sleep(wait)
                    try:
                        won.append(await self._swarm.dial_addr(Multiaddr(address), target))
                        nursery.cancel_scope.cancel()
                    except Exception as error:  # boundary: whatever libp2p raises means that this address didn't do
                        failures.append(f"{address}: {cause(error)}")

                for number, address in enumerate(addresses):
                    nursery.start_soon(attempt, address, number * _STAGGER)
        if scope.cancelled_caught and not won:
            failures.append(f"no answer within {timeout} s")
        return [] if won else failures

    # Streams

    async def open(self, peer: PeerId, protocol: str, timeout: float = 3.0) -> FrameStream:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        if peer not in self._connected:
            await self.dial(peer, [], timeout)
        what = f"opening {protocol} at {peer}"
        raw = await self._in_trio(self._open, peer, protocol, timeout=end - loop.time(), what=what, abandoned=self._drop_stream)
        return self._wrap(peer, protocol, raw)

    async def _open(self, peer: PeerId, protocol: str) -> Any:
        """In trio, never cancelled: it writes on the peer's connection."""
        living = [one for one in self._swarm.connections.get(ID.from_string(peer), []) if not one.is_closed]
        if not living:
            raise StreamClosed(f"the connection to {peer} has ended")
        try:
            raw = await living[0].new_stream()
        except Exception as error:  # boundary: libp2p's many errors here all mean that the connection is no good
            raise StreamClosed(f"the connection to {peer} took no stream: {cause(error)}") from error
        try:
            await MultiselectClient().select_one_of([protocol], MultiselectCommunicator(raw), _NEVER)
        except MultiselectClientError as error:
            await raw.reset()
            if "not supported" in str(error) or "unsupported" in str(error).lower():
                raise Unavailable(f"{peer} doesn't serve {protocol}") from error
            raise StreamClosed(f"{peer} ended the opening of {protocol}: {cause(error)}") from error
        except Exception as error:  # boundary: the same
            await raw.reset()
            raise StreamClosed(f"{peer} ended the opening of {protocol}: {cause(error)}") from error
        return raw

    def _drop_stream(self, raw: Any) -> None:
        if self._bridge is not None:
            self._bridge.spawn(raw.reset)

    def _wrap(self, peer: PeerId, protocol: str, raw: Any) -> FrameStream:
        if self._bridge is None:
            raise StreamClosed("this node is stopping")
        wire = TrioWire(self._bridge, raw, lambda: abort(raw.swarm_conn))
        stream = FrameStream(peer, protocol, wire)
        wire.start(stream)
        return stream

    async def _accept(self, raw: Any) -> None:
        """In trio: an incoming stream; its handler runs in asyncio. Returning ends the stream for libp2p, so it waits."""
        peer, protocol = PeerId(str(raw.muxed_conn.peer_id)), str(raw.get_protocol())
        if self._bridge is None or self._inbound.get(peer, 0) >= _MAX_INBOUND_STREAMS:
            await raw.reset()
            return
        self._inbound[peer] = self._inbound.get(peer, 0) + 1
        stream = self._wrap(peer, protocol, raw)
        loop = asyncio.get_event_loop()
        task = loop.create_task(serve_stream(self._handlers[protocol], stream), name=f"serve {protocol}")
        self._tasks.add(task)
        ended = trio.Event()

        def finished(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            left = self._inbound.get(peer, 1) - 1
            self._inbound[peer] = left
            if left <= 0:
                self._inbound.pop(peer, None)
            if self._bridge is not None:
                self._bridge.call_soon(ended.set)

        task.add_done_callback(finished)
        await ended.wait()

    # Crossing

    def _submit(self, function: Callable[..., Awaitable[T]], *args: Any) -> asyncio.Future[T]:
        if self._bridge is None:
            raise StreamClosed("this node isn't on the network: not started, or stopping")
        return self._bridge.submit(function, *args)

    async def _in_trio(
        self, function: Callable[..., Awaitable[T]], *args: Any, timeout: float, what: str, abandoned: Callable[[T], object] | None = None
    ) -> T:
        if self._bridge is None:
            raise StreamClosed("this node isn't on the network: not started, or stopping")
        try:
            async with asyncio.timeout(timeout):
                return await self._bridge.run(function, *args, abandoned=abandoned)
        except TimeoutError:
            raise DeadlineExceeded(f"{what} took over {timeout:.2f} s") from None
        except BridgeStopped as error:
            raise StreamClosed(f"{what}: {error}") from error
