"""Connections for step frames alone: TLS beside libp2p, one from each sender to each receiver.

Problem: over a libp2p stream a hidden state passes Noise in Python, yamux and the bridge to trio, on both sides: 2.8 ms p50 between two
workers, where the kernel needs 0.1. Choice: the sender asks over libp2p, where both sides' identities are proven, for a place to bring
its frames (`/mf/direct/1`): port, certificate and a token good once. It dials the host that libp2p is connected to, pins the
certificate, and shows the token: so the receiver knows who sends, the sender who receives. Frames are cut and handed on in the very
callback that read them. What can't be dialled (a NAT, a firewall) stays on libp2p: node/steps.py chooses.

Rejected: a second libp2p connection (0.6 ms for its codecs alone), the transfer process' port (another process' loop in the path).

The wire: 32 bytes of token, then frames, each 4 bytes of big-endian length and a step frame. Nothing comes back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import ssl
from collections.abc import Callable
from functools import lru_cache

from node.network.interface import Network, Stream, StreamClosed
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, MfError, PeerFault, Unavailable
from protocol.framing import pack, unpack
from protocol.ids import PeerId
from protocol.messages import DIRECT_PROTOCOL, DirectReply, DirectRequest, parse_reply, reply_frame

log = logging.getLogger(__name__)
Taker = Callable[[PeerId, bytes | memoryview], None]
"""(sender, step frame), at once; raises `MfError` for bytes that aren't a step: the connection ends."""
TOKEN = 32
TOKEN_SECONDS = 10.0
DIAL_SECONDS = 2.0
_MAX_TOKENS = 64
_MAX_LINKS = 256
_WRITE_BUFFER = 2 * limits.MAX_ACTIVATION_FRAME


class LinkServer:
    """Where other nodes bring their step frames. `context` has this node's certificate, `tls` is its SHA-256."""

    def __init__(self, network: Network, context: ssl.SSLContext, tls: bytes, take: Taker) -> None:
        self._network = network
        self._context = context
        self._tls = tls
        self._take = take
        self._tokens: dict[bytes, tuple[PeerId, float]] = {}
        self._server: asyncio.Server | None = None
        self._links: set[_Incoming] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listens at `host`, at any free port when `port` is taken or 0."""
        loop = asyncio.get_running_loop()
        for tried in dict.fromkeys((port, 0)):
            try:
                self._server = await loop.create_server(self._incoming, host, tried, ssl=self._context, ssl_handshake_timeout=5.0)
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
        """`/mf/direct/1`: a place and a token for whoever asks."""
        unpack(await stream.receive(5.0), DirectRequest, f"request from {stream.peer}")
        if self._server is None:
            raise Unavailable("this node takes step frames over libp2p alone")
        now = asyncio.get_running_loop().time()
        self._tokens = {token: told for token, told in self._tokens.items() if told[1] > now}
        if len(self._tokens) >= _MAX_TOKENS:
            raise Unavailable("too many connections for step frames are being made")
        token = secrets.token_bytes(TOKEN)
        self._tokens[token] = (stream.peer, now + TOKEN_SECONDS)
        await stream.send(reply_frame(DirectReply(port=self.port, tls=self._tls, token=token)))

    def _incoming(self) -> _Incoming:
        return _Incoming(self)

    def admit(self, token: bytes) -> PeerId | None:
        """Whose token it is; good once."""
        peer, until = self._tokens.pop(token, (None, 0.0))
        return peer if until > asyncio.get_running_loop().time() else None

    def joined(self, link: _Incoming) -> bool:
        self._links.add(link)
        return len(self._links) <= _MAX_LINKS

    def left(self, link: _Incoming) -> None:
        self._links.discard(link)

    def take(self, peer: PeerId, frame: bytes | memoryview) -> None:
        self._take(peer, frame)


class _Incoming(asyncio.Protocol):
    """One connection of another node's."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._peer: PeerId | None = None
        self._transport: asyncio.Transport | None = None
        self._greeting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._greeting = asyncio.get_running_loop().call_later(TOKEN_SECONDS, self.close)
        if not self._server.joined(self):
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
        self._server.left(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._feed(data)
        except MfError as error:
            log.warning("step frames of %s end: %s", self._peer or "a stranger", error, extra={"event": "link_refused"})
            self.close()

    def _feed(self, data: bytes) -> None:
        if not self._buffer and self._peer is not None and len(data) >= 4 and len(data) == 4 + int.from_bytes(data[:4], "big"):
            self._server.take(self._peer, memoryview(data)[4:])  # the common case: one whole frame, nothing copied
            return
        self._buffer += data
        if self._peer is None and not self._greeted():
            return
        assert self._peer is not None
        at = 0
        while len(self._buffer) - at >= 4:
            end = at + 4 + self._length(at)
            if len(self._buffer) < end:
                break
            self._server.take(self._peer, bytes(self._buffer[at + 4 : end]))
            at = end
        del self._buffer[:at]
        if len(self._buffer) >= 4:
            self._length(0)

    def _length(self, at: int) -> int:
        length = int.from_bytes(self._buffer[at : at + 4], "big")
        if length > limits.MAX_ACTIVATION_FRAME:
            raise PeerFault(f"a frame of {length} bytes, at most {limits.MAX_ACTIVATION_FRAME} are allowed")
        return length

    def _greeted(self) -> bool:
        if len(self._buffer) < TOKEN:
            return False
        token = bytes(self._buffer[:TOKEN])
        del self._buffer[:TOKEN]
        self._peer = self._server.admit(token)
        if self._peer is None:
            raise BadInput("a token that isn't known, or not any more")
        if self._greeting is not None:
            self._greeting.cancel()
        return True


class Link(asyncio.Protocol):
    """A connection to a peer's `LinkServer`."""

    def __init__(self, peer: PeerId) -> None:
        self._peer = peer
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

    def certificate(self) -> bytes:
        """DER of what the other side showed."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        return (tls.getpeercert(binary_form=True) if tls is not None else None) or b""

    def write(self, data: bytes) -> None:
        """Hands bytes over at once. `StreamClosed` when the connection is gone or its peer takes nothing."""
        if self.closed or self._transport is None or self._transport.is_closing():
            raise StreamClosed(f"the connection for step frames to {self._peer} has ended")
        if self._transport.get_write_buffer_size() > _WRITE_BUFFER:
            self.close()
            raise StreamClosed(f"{self._peer} takes no step frames")
        self._transport.write(data)

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
    host = network.host_of(peer)
    if host is None:
        raise Unavailable(f"no direct way to {peer} is known")
    stream = await network.open(peer, DIRECT_PROTOCOL, timeout)
    try:
        await stream.send(pack(DirectRequest()), timeout)
        reply = parse_reply(await stream.receive(timeout), DirectReply, f"place for step frames at {peer}")
    finally:
        await stream.close()
    if not 0 < reply.port < 65_536 or len(reply.tls) != 32 or len(reply.token) != TOKEN:
        raise PeerFault(f"{peer} told a place for step frames that can't be: port, certificate or token")
    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(lambda: Link(peer), host, reply.port, ssl=_client_context(), server_hostname="")
    if hashlib.sha256(link.certificate()).digest() != reply.tls:
        link.close()
        raise PeerFault(f"at {host}:{reply.port} another node than {peer} answers")
    link.write(reply.token)
    return link


@lru_cache(maxsize=1)
def _client_context() -> ssl.SSLContext:
    """TLS without names or authorities: the certificate itself is pinned."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
