"""The network over libp2p: TCP, Noise and yamux. The traps of py-libp2p 0.8.1 that shape this file:

* its default host also takes plaintext, where anyone can claim any PeerID: the security options are Noise alone;
* `dial_peer` tries one TCP address, prefers non-loopback ones and refuses a peer for 60 s after a failure:
  `host` dials addresses side by side, through `dial_addr`;
* a listener binds with SO_REUSEPORT, so a taken port goes unnoticed: it is tried once without;
* the inbound limiter is held until the host ends and so counts connections ever made: replaced by a count of living ones;
* a close writes GO_AWAY behind whatever is stuck: a connection that doesn't end in time loses its socket;
* the auto-connector dials whoever the peer store knows, whatever its marks say: it is switched off;
* yamux gives back the window after each read, a frame sealed and sent for every few bytes: it waits for half of it.

The private names used are checked at start, so that another version of libp2p fails with a sentence.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from typing import Any

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
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from protocol.errors import BadInput, Conflict

_NEVER = 86_400
_SWARM_NAMES = ("_inbound_limiter", "_resource_manager", "_stream_semaphore", "retry_config", "connections", "auto_connector")
log = logging.getLogger(__name__)


def tune_libp2p() -> None:
    """Sets the constants facts were measured with; names what this version of libp2p lacks."""
    wanted = (
        (libp2p_yamux, "MAX_MESSAGE_SIZE"),
        (libp2p_swarm, "_HAPPY_EYEBALLS_DELAY"),
        (libp2p_swarm.Swarm, "dial_addr"),
        (libp2p_swarm.AutoConnector, "maybe_connect"),
        (libp2p_swarm.Swarm, "_dial_with_retry"),
        (Yamux, "_write_frame"),
        (YamuxStream, "_auto_tune_and_send_window_update"),
        (YamuxStream, "_grow_threshold"),
    )
    for owner, name in wanted:
        if not hasattr(owner, name):
            raise RuntimeError(f"this libp2p has no {getattr(owner, '__name__', owner)}.{name}: install libp2p 0.8.1")
    libp2p_yamux.MAX_MESSAGE_SIZE = 65_519
    libp2p_swarm._HAPPY_EYEBALLS_DELAY = 0
    if YamuxStream._auto_tune_and_send_window_update is not _release_window:
        YamuxStream._auto_tune_and_send_window_update = _release_window


_release_at_once = YamuxStream._auto_tune_and_send_window_update


async def _release_window(stream: Any, *, bytes_read: int = 0) -> None:
    """Gives the sender room again once half of the window is read, as yamux's specification advises; then its own rule, growth and all."""
    stream._pending_recv_release += bytes_read
    buffered = len(stream.conn.stream_buffers.get(stream.stream_id, b""))
    if stream.target_recv_window - (stream.recv_window + buffered) >= stream._grow_threshold():
        await _release_at_once(stream, bytes_read=0)


async def _dial_nobody() -> None:
    """Instead of the auto-connector's own idea whom to know."""


def abort(connection: Any) -> None:
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


class Watch(INotifee):  # type: ignore[misc]
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


def build_host(key: Ed25519PrivateKey) -> Any:
    """In trio: a host with Noise and yamux alone, and this node's bounds instead of libp2p's."""
    raw = HostKey.from_bytes(key.private_bytes_raw())
    pair = KeyPair(raw, raw.get_public_key())
    noise = NoiseTransport(pair, noise_privkey=new_noise_pair().private_key)
    config = ConnectionConfig(
        max_connections=100_000, min_connections=0, low_watermark=0, high_watermark=100_000, auto_connect_interval=_NEVER
    )
    host = new_host(
        key_pair=pair,
        sec_opt={NOISE_ID: noise},
        muxer_opt={YAMUX_ID: Yamux},
        connection_config=config,
        disable_identify_address_discovery=True,
    )
    swarm: Any = host.get_network()
    for name in _SWARM_NAMES:
        if not hasattr(swarm, name):
            raise RuntimeError(f"this libp2p's swarm has no {name}: install libp2p 0.8.1")
    swarm._inbound_limiter = trio.CapacityLimiter(math.inf)
    swarm._resource_manager = None
    swarm._stream_semaphore = None
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.auto_connector.maybe_connect = _dial_nobody
    return host


def try_port(ip: str, port: int, address: str) -> None:
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


def cause(error: BaseException) -> str:
    """The innermost reason libp2p gives, on one line."""
    while (inner := error.__cause__ or (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None)) is not None:
        error = inner
    return (str(error) or type(error).__name__).splitlines()[0][:200]
