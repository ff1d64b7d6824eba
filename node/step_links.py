"""Connections for step frames alone: sealed TCP beside libp2p, one from each sender to each receiver.

Problem: over a libp2p stream a hidden state passes Noise in Python, yamux and the bridge to trio, on both sides: 2.8 ms p50 between two
workers, where the kernel needs 0.1. Choice: the sender asks over libp2p, where both sides' identities are proven and what is said is
secret, for a place to bring its frames (`/mf/direct/1`): port, a name good once, and a fresh key. It dials the host that libp2p is
connected to, says the name, and seals each frame with AES-256-GCM under that key: only the one who asked can send, only the one
who was asked can read, and what was read once can't be sent again. Frames are opened and handed on in the very callback that read
them; a crowd's come as one (protocol/bundles.py) where the one who was asked said that he takes them so. What can't be dialled (a NAT,
a firewall) stays on libp2p: node/steps.py chooses.

Rejected: TLS (0.3 ms a frame more, spent in asyncio's layers for it), a second libp2p connection (0.6 ms for its codecs alone), the
transfer process' port (another process' loop in the path), the worker's own end of it for what is received (checks in two places). What a
worker sends of its own goes over such a connection too (runtime/lanes.py).

The wire: 16 bytes of name, then frames as protocol/sealing.py has them. Nothing comes back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.network.interface import Network, Stream, StreamClosed
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, MfError, PeerFault, Unavailable
from protocol.framing import pack, unpack
from protocol.ids import PeerId
from protocol.messages import DIRECT_PROTOCOL, DirectReply, DirectRequest, parse_reply, reply_frame
from protocol.sealing import KEY, TAG, Sealer

log = logging.getLogger(__name__)
Taker = Callable[[PeerId, bytes | memoryview], None]
"""(sender, step frame), at once; raises `MfError` for bytes that aren't a step: the connection ends."""
NAME = 16
NAME_SECONDS = 10.0
DIAL_SECONDS = 2.0
RETRY = 60.0
"""Seconds for which a peer to which no such connection could be made isn't asked again."""
_MAX_NAMES = 64
_MAX_LINKS = 256
_RECEIVE = 64 * limits.KIB
_WRITE_BUFFER = 2 * limits.MAX_ACTIVATION_FRAME


class LinkServer:
    """Where other nodes bring their step frames."""

    def __init__(self, take: Taker) -> None:
        self._take = take
        self._expected: dict[bytes, tuple[PeerId, bytes, float]] = {}
        self._server: asyncio.Server | None = None
        self._links: set[_Incoming] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listens at `host`, at any free port when `port` is taken or 0."""
        loop = asyncio.get_running_loop()
        for tried in dict.fromkeys((port, 0)):
            try:
                self._server = await loop.create_server(self._incoming, host, tried)
            except OSError as error:
                log.info("step frames aren't taken at %s:%d: %s", host, tried, error.strerror)
                continue
            self.port = self._server.sockets[0].getsockname()[1]
            return

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.close()

    async def handle(self, stream: Stream) -> None:
        """`/mf/direct/1`: a place, a name and a key for whoever asks."""
        unpack(await stream.receive(5.0), DirectRequest, f"request from {stream.peer}")
        if self._server is None:
            raise Unavailable("this node takes step frames over libp2p alone")
        now = asyncio.get_running_loop().time()
        self._expected = {name: told for name, told in self._expected.items() if told[2] > now}
        if len(self._expected) >= _MAX_NAMES:
            raise Unavailable("too many connections for step frames are being made")
        name, key = secrets.token_bytes(NAME), secrets.token_bytes(KEY)
        self._expected[name] = (stream.peer, key, now + NAME_SECONDS)
        await stream.send(reply_frame(DirectReply(port=self.port, name=name, key=key, bundle=limits.MAX_BUNDLE)))

    def _incoming(self) -> _Incoming:
        return _Incoming(self)

    def admit(self, name: bytes) -> tuple[PeerId, bytes]:
        """Who was told this name, and the key told along; good once."""
        told = self._expected.pop(name, None)
        if told is None or told[2] <= asyncio.get_running_loop().time():
            raise BadInput("a name that isn't expected, or not any more")
        return told[0], told[1]

    def joined(self, link: _Incoming) -> bool:
        self._links.add(link)
        return len(self._links) <= _MAX_LINKS

    def left(self, link: _Incoming) -> None:
        self._links.discard(link)

    def take(self, peer: PeerId, frame: bytes | memoryview) -> None:
        self._take(peer, frame)


class _Incoming(asyncio.BufferedProtocol):
    """One connection of another node's."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._buffer, self._room = bytearray(), memoryview(bytearray(_RECEIVE))
        self._peer = PeerId("a stranger")
        self._key: AESGCM | None = None
        self._count = 0
        self._transport: asyncio.Transport | None = None
        self._greeting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._greeting = asyncio.get_running_loop().call_later(NAME_SECONDS, self.close)
        if not self._server.joined(self):
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
        self._server.left(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._feed(self._room[:nbytes])
        except MfError as error:
            log.warning("step frames of %s end: %s", self._peer, error, extra={"event": "link_refused"})
            self.close()

    def _feed(self, data: memoryview) -> None:
        if not self._buffer and self._key is not None and len(data) >= 4 and len(data) == 4 + int.from_bytes(data[:4], "big"):
            self._open(data[:4], data[4:])  # the common case: one whole frame, nothing copied
            return
        self._buffer += data
        if self._key is None and not self._greeted():
            return
        at = 0
        while len(self._buffer) - at >= 4:
            end = at + 4 + self._length(at)
            if len(self._buffer) < end:
                break
            self._open(bytes(self._buffer[at : at + 4]), bytes(self._buffer[at + 4 : end]))
            at = end
        del self._buffer[:at]

    def _open(self, length: bytes | memoryview, sealed: bytes | memoryview) -> None:
        assert self._key is not None
        try:
            frame = self._key.decrypt(self._count.to_bytes(12, "big"), sealed, length)
        except InvalidTag:
            raise PeerFault("a frame that isn't sealed with the connection's key, or not in its turn") from None
        self._count += 1
        self._server.take(self._peer, frame)

    def _length(self, at: int) -> int:
        length = int.from_bytes(self._buffer[at : at + 4], "big")
        if not TAG <= length <= limits.MAX_ACTIVATION_FRAME + TAG:
            raise PeerFault(f"a frame of {length} bytes, {TAG} to {limits.MAX_ACTIVATION_FRAME + TAG} are allowed")
        return length

    def _greeted(self) -> bool:
        if len(self._buffer) < NAME:
            return False
        name = bytes(self._buffer[:NAME])
        del self._buffer[:NAME]
        self._peer, key = self._server.admit(name)
        self._key = AESGCM(key)
        if self._greeting is not None:
            self._greeting.cancel()
        return True


class Link(asyncio.Protocol):
    """A connection to a peer's `LinkServer`."""

    def __init__(self, peer: PeerId, key: bytes, bundle: int = 0) -> None:
        """`bundle`: so many step frames may go as one."""
        self.bundle = min(bundle, limits.MAX_BUNDLE)
        self._peer = peer
        self._sealer = Sealer(key)
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=limits.MAX_ACTIVATION_FRAME // 16)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._room.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def greet(self, name: bytes) -> None:
        if self._transport is not None:
            self._transport.write(name)

    def write(self, frame: bytes) -> None:
        """Hands a step frame over at once. `StreamClosed` when the connection is gone or its peer takes nothing."""
        if self.closed or self._transport is None or self._transport.is_closing():
            raise StreamClosed(f"the connection for step frames to {self._peer} has ended")
        if self._transport.get_write_buffer_size() > _WRITE_BUFFER:
            self.close()
            raise StreamClosed(f"{self._peer} takes no step frames")
        self._transport.write(self._sealer.seal(frame))

    async def drained(self, timeout: float) -> None:
        """Until the other side has room again."""
        if self._room.is_set():
            return
        try:
            async with asyncio.timeout(timeout):
                await self._room.wait()
        except TimeoutError:
            self.close()
            raise DeadlineExceeded(f"{self._peer} took no step frame within {timeout:g} s") from None

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()


async def dial_link(network: Network, peer: PeerId, timeout: float = DIAL_SECONDS) -> Link:
    """A connection of its own to `peer`; `MfError` when there can't be one."""
    try:
        async with asyncio.timeout(timeout):
            return await _dial_link(network, peer, timeout)
    except TimeoutError:
        raise DeadlineExceeded(f"{peer} took no connection for step frames within {timeout:g} s") from None
    except OSError as error:
        raise Unavailable(f"{peer} took no connection for step frames: {error.strerror or error}") from error


async def _dial_link(network: Network, peer: PeerId, timeout: float) -> Link:
    host, reply = await place_at(network, peer, timeout)
    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(lambda: Link(peer, reply.key, reply.bundle), host, reply.port)
    link.greet(reply.name)
    return link


async def place_at(network: Network, peer: PeerId, timeout: float) -> tuple[str, DirectReply]:
    """Where `peer` takes the step frames of a connection that is made soon, and only of that."""
    host = network.host_of(peer)
    if host is None:
        raise Unavailable(f"no direct way to {peer} is known")
    stream = await network.open(peer, DIRECT_PROTOCOL, timeout)
    try:
        await stream.send(pack(DirectRequest()), timeout)
        reply = parse_reply(await stream.receive(timeout), DirectReply, f"place for step frames at {peer}")
    finally:
        await stream.close()
    if not 0 < reply.port < 65_536 or len(reply.name) != NAME or len(reply.key) != KEY or reply.bundle < 0:
        raise PeerFault(f"{peer} told a place for step frames that can't be: port, name, key or bundle")
    return host, reply
