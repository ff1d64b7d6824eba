"""Step frames between stages: one long-lived connection towards each peer, every frame checked for its sender.

Frames travel over a connection of their own (node/step_links.py), or where there can't be one over a libp2p stream (`/mf/step/1`).
A frame for this node itself takes no network. Frames go to the sinks registered for their session; one that comes from another
peer than the session's route says is dropped and logged, so that nobody can slip a hidden state into a session of others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from node.network.interface import Network, Stream, StreamClosed
from node.step_links import Link, dial_link
from protocol.errors import MfError
from protocol.ids import PeerId
from protocol.messages import STEP_PROTOCOL, StepHead, parse_step, step_frame

log = logging.getLogger(__name__)
Sink = Callable[[PeerId, StepHead, memoryview], None]
"""(sender, head, raw): must return quickly; raises `MfError` for a frame it refuses."""
SEND_TIMEOUT = 5.0
RETRY_LINK = 60.0
"""Seconds for which a peer without a connection of its own is served over libp2p before that is tried again."""


class Steps:
    def __init__(self, network: Network) -> None:
        self._network = network
        self._sinks: dict[bytes, list[Sink]] = {}
        self._links: dict[PeerId, Link] = {}
        self._no_link: dict[PeerId, float] = {}
        self._streams: dict[PeerId, Stream] = {}
        self._locks: dict[PeerId, asyncio.Lock] = {}
        self._sending: set[asyncio.Future[None]] = set()

    def listen(self, session: bytes, sink: Sink) -> None:
        """Frames of `session` go to `sink`; a node that is entry and stage of one session has two."""
        self._sinks.setdefault(session, []).insert(0, sink)  # a stage is in more of a hurry than the entry, and comes later

    def forget(self, session: bytes, sink: Sink) -> None:
        sinks = self._sinks.get(session, [])
        if sink in sinks:
            sinks.remove(sink)
        if not sinks:
            self._sinks.pop(session, None)

    async def send(self, peer: PeerId, head: StepHead, raw: bytes | memoryview = b"") -> None:
        """Delivers here, or sends to `peer`; a stale connection is replaced once. Raises the network's errors."""
        if peer == self._network.peer_id:
            self._deliver(peer, head, memoryview(raw))
            return
        frame, lock = step_frame(head, raw), self._locks.setdefault(peer, asyncio.Lock())
        link = self._links.get(peer)
        if link is not None and not link.closed and not lock.locked():
            link.write(frame)
            await link.drained(SEND_TIMEOUT)
            return
        sending = self._keep(self._send_in_turn(peer, frame, lock))
        # A session that ends in the middle of its write would reset the stream under the frames of all others.
        await asyncio.shield(sending)

    def post(self, peer: PeerId, head: StepHead, raw: bytes, failed: Callable[[MfError], None]) -> None:
        """As `send`, at once where a connection stands, and without waiting; `failed` is told when it can't be sent."""
        link, lock = self._links.get(peer), self._locks.get(peer)
        if peer == self._network.peer_id:
            self._deliver(peer, head, memoryview(raw))
        elif link is not None and not link.closed and lock is not None and not lock.locked():
            try:
                link.write(step_frame(head, raw))
            except MfError as error:
                failed(error)
        else:
            lock = self._locks.setdefault(peer, asyncio.Lock())
            self._keep(self._send_in_turn(peer, step_frame(head, raw), lock)).add_done_callback(lambda done: _tell(done, failed))

    def take(self, sender: PeerId, frame: bytes | memoryview) -> None:
        """A frame from a peer, whichever way it came."""
        head, raw = parse_step(frame)
        self._deliver(sender, head, raw)

    async def warm(self, peer: PeerId) -> None:
        """Makes the connection ahead of the first frame; where it can't be made the first frame finds out."""
        if peer == self._network.peer_id:
            return
        async with self._locks.setdefault(peer, asyncio.Lock()):
            await self._link(peer)

    async def handle(self, stream: Stream) -> None:
        """Takes in another node's frames until it ends the stream."""
        while True:
            try:
                frame = await stream.receive(3_600.0)
            except StreamClosed:
                return
            self.take(stream.peer, frame)

    async def close(self) -> None:
        for stream in self._streams.values():
            stream.reset()
        for link in self._links.values():
            link.close()
        self._streams.clear()
        self._links.clear()

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        sending = asyncio.ensure_future(work)
        self._sending.add(sending)
        sending.add_done_callback(self._sent)
        return sending

    def _sent(self, sending: asyncio.Future[None]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            log.debug("a step wasn't sent: %s", error)

    async def _send_in_turn(self, peer: PeerId, frame: bytes, lock: asyncio.Lock) -> None:
        async with lock:
            link = await self._link(peer)
            if link is not None:
                link.write(frame)
                await link.drained(SEND_TIMEOUT)
                return
            reused = peer in self._streams
            try:
                await self._send_once(peer, frame)
            except StreamClosed:
                if not reused:
                    raise
                await self._send_once(peer, frame)

    async def _link(self, peer: PeerId) -> Link | None:
        """The peer's connection for steps, made if need be; None: over libp2p for now. Frames already sent that way stay ahead."""
        link = self._links.get(peer)
        if link is not None and not link.closed:
            return link
        now = asyncio.get_running_loop().time()
        if peer in self._streams or self._network.host_of(peer) is None or self._no_link.get(peer, 0.0) > now:
            return None
        try:
            link = self._links[peer] = await dial_link(self._network, peer)
        except MfError as error:
            self._no_link[peer] = now + RETRY_LINK
            log.info("steps to %s go over libp2p: %s", peer, error, extra={"event": "no_step_link", "fields": {"peer": peer}})
            return None
        return link

    async def _send_once(self, peer: PeerId, frame: bytes) -> None:
        stream = self._streams.get(peer)
        if stream is None:
            stream = self._streams[peer] = await self._network.open(peer, STEP_PROTOCOL, SEND_TIMEOUT)
        try:
            await stream.send(frame, SEND_TIMEOUT)
        except MfError:
            self._streams.pop(peer, None)
            stream.reset()
            raise

    def _deliver(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        for sink in list(self._sinks.get(head.session, ())):
            try:
                sink(sender, head, raw)
            except MfError as error:
                log.warning(
                    "a step from %s is refused: %s",
                    sender,
                    error,
                    extra={"event": "step_refused", "fields": {"peer": sender, "reason": error.message}},
                )


def _tell(done: asyncio.Future[None], failed: Callable[[MfError], None]) -> None:
    error = None if done.cancelled() else done.exception()
    if isinstance(error, MfError):
        failed(error)
