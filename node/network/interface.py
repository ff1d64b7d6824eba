"""What the rest of the node knows of the network. One real implementation (libp2p), one in memory, one conformance suite.

Everything here is asyncio. A `Stream` carries frames (varint length and bytes). Obligations of every implementation:

* a peer's identity is proven before `open` returns or a handler runs: `stream.peer` is never a claim;
* each stream has a reader that always drains into a bounded queue; when it is full the stream is closed and the peer named in the log;
* no write is ever cancelled half-way: a send that misses its deadline resets the stream;
* every wait takes a timeout in seconds and ends in `DeadlineExceeded` (naming the peer and the wait); a stream ended by the other side
  or by a fault raises `StreamClosed`; a frame over the protocol's limit (`messages.FRAME_LIMITS`) resets the stream: `PeerFault`;
* a handler that raises never takes the node down: the boundary logs it and resets the stream;
* `stop()` returns within 2 s, whatever the peers do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from protocol.errors import Unavailable
from protocol.ids import PeerId


class StreamClosed(Unavailable):
    """The other side ended the stream, or it was reset."""

    code = "stream_closed"


class Stream(Protocol):
    @property
    def peer(self) -> PeerId: ...

    @property
    def protocol(self) -> str: ...

    async def send(self, frame: bytes, timeout: float = 5.0) -> None:
        """Sends one frame."""

    async def receive(self, timeout: float) -> bytes:
        """The next frame; `StreamClosed` after the last one."""

    async def close(self) -> None:
        """Ends our side politely; never raises, never waits over 1 s."""

    def reset(self) -> None:
        """Ends the stream at once; both sides' waits end in `StreamClosed`."""


Handler = Callable[[Stream], Awaitable[None]]
PeerListener = Callable[[PeerId, bool], None]
"""Called with (peer, True) when the first connection to a peer stands and (peer, False) when the last has gone."""


class Network(Protocol):
    @property
    def peer_id(self) -> PeerId: ...

    def addresses(self) -> list[str]:
        """Multiaddrs this node listens on, with real ports, without /p2p."""

    async def start(self) -> None:
        """Listens; `Conflict` when the port is taken, `BadInput` for an address it can't use."""

    async def stop(self) -> None: ...

    async def dial(self, peer: PeerId, addresses: Sequence[str], timeout: float = 3.0) -> None:
        """Connects, trying the addresses; returns at once when connected. `Unavailable` says which addresses were tried."""

    async def open(self, peer: PeerId, protocol: str, timeout: float = 3.0) -> Stream:
        """A new stream to a connected peer (dials by addresses it already knows otherwise)."""

    def serve(self, protocol: str, handler: Handler) -> None:
        """Runs `handler` for each incoming stream of a protocol; set before `start`."""

    def connected(self) -> list[PeerId]: ...

    def host_of(self, peer: PeerId) -> str | None:
        """The IP address of the other end of a connection to the peer; None where there is none that could be dialled."""

    def listen_peers(self, listener: PeerListener) -> None: ...

    async def disconnect(self, peer: PeerId) -> None: ...


class PeerAddresses(Protocol):
    peer: PeerId
    addresses: list[str]
