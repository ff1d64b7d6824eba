"""The network over libp2p: TCP, Noise and yamux. The traps of py-libp2p 0.8.1 that shape this file:

* its default host also takes plaintext, where anyone can claim any PeerID: the security options are Noise alone;
* `dial_peer` tries one TCP address, prefers non-loopback ones and refuses a peer for 60 s after a failure:
  addresses are dialled here, side by side, through `dial_addr`;
* a listener binds with SO_REUSEPORT, so a taken port goes unnoticed: it is tried once without;
* the inbound limiter is held until the host ends and so counts connections ever made: replaced by a count of living ones;
* a close writes GO_AWAY behind whatever is stuck: a connection that doesn't end in time loses its socket;
* the auto-connector dials whoever the peer store knows, whatever its marks say: it is switched off.

The private names used are checked at start, so that another version of libp2p fails with a sentence.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import libp2p.network.swarm as libp2p_swarm
import libp2p.stream_muxer.yamux.yamux as libp2p_yamux
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p import new_host
from libp2p.abc import INotifee
from libp2p.crypto.ed25519 import Ed25519PrivateKey as HostKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_pair
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient, MultiselectClientError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node.network.addresses import expand_listen, parse_address
from node.network.bridge import Bridge, BridgeStopped
from node.network.interface import Handler, PeerListener, StreamClosed
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


def _tune_libp2p() -> None:
    """Sets the constants facts were measured with; names what this version of libp2p lacks."""
    wanted = (
        (libp2p_yamux, "MAX_MESSAGE_SIZE"),
        (libp2p_swarm, "_HAPPY_EYEBALLS_DELAY"),
        (libp2p_swarm.Swarm, "dial_addr"),
        (libp2p_swarm.AutoConnector, "maybe_connect"),
        (libp2p_swarm.Swarm, "_dial_with_retry"),
        (Yamux, "_write_frame"),
    )
    for owner, name in wanted:
        if not hasattr(owner, name):
            raise RuntimeError(f"this libp2p has no {getattr(owner, '__name__', owner)}.{name}: install libp2p 0.8.1")
    libp2p_yamux.MAX_MESSAGE_SIZE = 65_519
    libp2p_swarm._HAPPY_EYEBALLS_DELAY = 0


async def _dial_nobody() -> None:
    """Instead of the auto-connector's own idea whom to know."""


def _abort(connection: Any) -> None:
    """Takes the socket away from a connection, whatever is stuck in it."""
    inner = getattr(connection.muxed_conn, "secured_conn", None)
    seen: set[int] = set()
    layers = [inner]
    while layers:
        layer = layers.pop()
        if layer is None or id(layer) in seen or len(seen) > 16:
            continue
        seen.add(id(layer))
        if isinstance(layer, trio.SocketStream):
            layer.socket.close()
            return
        layers += [getattr(layer, name, None) for name in ("conn", "read_writer", "read_write_closer", "stream")]
    log.warning("a connection's socket wasn't found, it can't be aborted")


class _Watch(INotifee):  # type: ignore[misc]
    """Tells the network of connections; runs in trio, which shares asyncio's thread."""

    def __init__(self, changed: Callable[[Any], None]) -> None:
        self._changed = changed

    async def connected(self, network: Any, conn: Any) -> None:
        self._changed(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        self._changed(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


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

    def listen_peers(self, listener: PeerListener) -> None:
        self._listeners.append(listener)

    # Starting and stopping

    async def start(self) -> None:
        _tune_libp2p()
        wanted = [parse_address(address) for address in self._listen]
        for (ip, port), address in zip(wanted, self._listen, strict=True):
            _try_port(ip, port, address)
        self._bridge = await Bridge.acquire()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._served = self._bridge.submit(self._serve, ready)
        await asyncio.wait([ready, self._served], return_when=asyncio.FIRST_COMPLETED, timeout=10)
        if not ready.done():
            served, self._served = self._served, None
            await self._bridge.release()
            cause = served.exception() if served.done() and not served.cancelled() else None
            raise cause if isinstance(cause, MfError) else Conflict(f"libp2p didn't start on {', '.join(self._listen)}: {cause}")
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
                _abort(connection)
        if self._stopping is not None:
            self._stopping.set()

    def _build(self) -> None:
        raw = HostKey.from_bytes(self._key.private_bytes_raw())
        pair = KeyPair(raw, raw.get_public_key())
        noise = NoiseTransport(pair, noise_privkey=new_noise_pair().private_key)
        config = ConnectionConfig(
            max_connections=100_000, min_connections=0, low_watermark=0, high_watermark=100_000, auto_connect_interval=_NEVER
        )
        self._host = new_host(
            key_pair=pair,
            sec_opt={NOISE_ID: noise},
            muxer_opt={YAMUX_ID: Yamux},
            connection_config=config,
            disable_identify_address_discovery=True,
        )
        self._swarm = self._host.get_network()
        for name in ("_inbound_limiter", "_resource_manager", "_stream_semaphore", "retry_config", "connections", "auto_connector"):
            if not hasattr(self._swarm, name):
                raise RuntimeError(f"this libp2p's swarm has no {name}: install libp2p 0.8.1")
        self._swarm._inbound_limiter = trio.CapacityLimiter(math.inf)
        self._swarm._resource_manager = None
        self._swarm._stream_semaphore = None
        self._swarm.retry_config = RetryConfig(max_retries=0)
        self._swarm.auto_connector.maybe_connect = _dial_nobody
        self._swarm.register_notifee(_Watch(self._changed))
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
                _abort(connection)

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
                        failures.append(f"{address}: {_cause(error)}")

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
            raise StreamClosed(f"the connection to {peer} took no stream: {_cause(error)}") from error
        try:
            await MultiselectClient().select_one_of([protocol], MultiselectCommunicator(raw), _NEVER)
        except MultiselectClientError as error:
            await raw.reset()
            if "not supported" in str(error) or "unsupported" in str(error).lower():
                raise Unavailable(f"{peer} doesn't serve {protocol}") from error
            raise StreamClosed(f"{peer} ended the opening of {protocol}: {_cause(error)}") from error
        except Exception as error:  # boundary: the same
            await raw.reset()
            raise StreamClosed(f"{peer} ended the opening of {protocol}: {_cause(error)}") from error
        return raw

    def _drop_stream(self, raw: Any) -> None:
        if self._bridge is not None:
            self._bridge.spawn(raw.reset)

    def _wrap(self, peer: PeerId, protocol: str, raw: Any) -> FrameStream:
        if self._bridge is None:
            raise StreamClosed("this node is stopping")
        wire = TrioWire(self._bridge, raw, lambda: _abort(raw.swarm_conn))
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


def _try_port(ip: str, port: int, address: str) -> None:
    """libp2p's own listener shares a port with others silently; this one doesn't."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ip, port))
            probe.listen(1)
    except OSError as error:
        if error.errno in (98, 48):
            raise Conflict(f"port {port} is in use ({address})", hint="stop the other program or choose another --listen") from error
        raise BadInput(f"can't listen on {address}: {error.strerror}", hint="--listen takes an address of this machine") from error


def _cause(error: BaseException) -> str:
    """The innermost reason libp2p gives, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0][:200]
