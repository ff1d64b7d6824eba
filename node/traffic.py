"""What one request makes this node send and receive: the bytes of its steps, of the streams it opened, of the shards it had read.

A context variable, so that none of the parts between has to hand a counter down: tasks that the request starts inherit it. What carries
many requests' bytes at once (connections for steps) counts by the session. Bytes are those of frames and leaves as they are handed over,
without what the connections' own sealing adds. Not in it: what the node exchanges anyway (records, lookups, heartbeats). Stages
elsewhere count the same of their sessions, and tell it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from node.network.interface import Handler, Network, PeerListener, Stream
from protocol.errors import PeerFault
from protocol.ids import PeerId

Stage = tuple[str, int, int]
"""Peer, first layer and one past the last."""
MOST = 1 << 63


@dataclass
class Traffic:
    """Bytes."""

    sent: int = 0
    received: int = 0
    stages: dict[Stage, tuple[int, int]] = field(default_factory=dict)
    """(sent, received) of stages at other nodes, as each told last."""


_CURRENT: ContextVar[Traffic | None] = ContextVar("traffic", default=None)


def current() -> Traffic | None:
    """The counter of the request under way; None where nobody asked for one."""
    return _CURRENT.get()


@contextmanager
def counting() -> Iterator[Traffic]:
    """Counts what is done within, by this task and those it starts."""
    traffic = Traffic()
    token = _CURRENT.set(traffic)
    try:
        yield traffic
    finally:
        _CURRENT.reset(token)


def note(sent: int = 0, received: int = 0) -> None:
    """Bytes of the request under way that no counted stream carried."""
    traffic = _CURRENT.get()
    if traffic is not None:
        traffic.sent += sent
        traffic.received += received


def note_stage(stage: Stage, moved: list[int]) -> None:
    """What another node's stage says that it has moved for this request so far; `PeerFault` for numbers that can't be."""
    if len(moved) != 2 or not all(0 <= count < MOST for count in moved):
        raise PeerFault(f"{stage[0]} told bytes moved that can't be: two numbers from 0 to 2^63 are")
    traffic = _CURRENT.get()
    if traffic is not None:
        traffic.stages[stage] = (moved[0], moved[1])


class CountedStream:
    """A `Stream` whose frames are counted for one request."""

    def __init__(self, inner: Stream, traffic: Traffic) -> None:
        self._inner = inner
        self._traffic = traffic

    @property
    def peer(self) -> PeerId:
        return self._inner.peer

    @property
    def protocol(self) -> str:
        return self._inner.protocol

    async def send(self, frame: bytes, timeout: float = 5.0) -> None:
        await self._inner.send(frame, timeout)
        self._traffic.sent += len(frame)

    async def receive(self, timeout: float) -> bytes:
        frame = await self._inner.receive(timeout)
        self._traffic.received += len(frame)
        return frame

    async def close(self) -> None:
        await self._inner.close()

    def reset(self) -> None:
        self._inner.reset()


class CountedNetwork:
    """A `Network` around another, for parts whose streams serve one request each: a stream kept for many would count for the first."""

    def __init__(self, inner: Network) -> None:
        self._inner = inner

    @property
    def peer_id(self) -> PeerId:
        return self._inner.peer_id

    def addresses(self) -> list[str]:
        return self._inner.addresses()

    async def start(self) -> None:
        await self._inner.start()

    async def stop(self) -> None:
        await self._inner.stop()

    async def dial(self, peer: PeerId, addresses: Sequence[str], timeout: float = 3.0) -> None:
        await self._inner.dial(peer, addresses, timeout)

    async def open(self, peer: PeerId, protocol: str, timeout: float = 3.0) -> Stream:
        stream, traffic = await self._inner.open(peer, protocol, timeout), _CURRENT.get()
        return stream if traffic is None else CountedStream(stream, traffic)

    def serve(self, protocol: str, handler: Handler) -> None:
        self._inner.serve(protocol, handler)

    def connected(self) -> list[PeerId]:
        return self._inner.connected()

    def host_of(self, peer: PeerId) -> str | None:
        return self._inner.host_of(peer)

    def listen_peers(self, listener: PeerListener) -> None:
        self._inner.listen_peers(listener)

    async def disconnect(self, peer: PeerId) -> None:
        await self._inner.disconnect(peer)
