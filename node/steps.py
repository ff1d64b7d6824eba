"""Step frames between stages (`/mf/step/1`): one long-lived stream towards each peer, every frame checked for its sender.

A frame for this node itself takes no network. Frames go to the sink registered for their session; one that comes from another
peer than the session's route says is dropped and logged, so that nobody can slip a hidden state into a session of others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from node.network.interface import Network, Stream, StreamClosed
from protocol.errors import MfError
from protocol.ids import PeerId
from protocol.messages import STEP_PROTOCOL, StepHead, parse_step, step_frame

log = logging.getLogger(__name__)
Sink = Callable[[PeerId, StepHead, memoryview], Awaitable[None]]
"""(sender, head, raw): must return quickly; raises `MfError` for a frame it refuses."""
SEND_TIMEOUT = 5.0


class Steps:
    def __init__(self, network: Network) -> None:
        self._network = network
        self._sinks: dict[bytes, list[Sink]] = {}
        self._streams: dict[PeerId, Stream] = {}
        self._locks: dict[PeerId, asyncio.Lock] = {}
        self._sending: set[asyncio.Future[None]] = set()

    def listen(self, session: bytes, sink: Sink) -> None:
        """Frames of `session` go to `sink`; a node that is entry and stage of one session has two."""
        self._sinks.setdefault(session, []).append(sink)

    def forget(self, session: bytes, sink: Sink) -> None:
        sinks = self._sinks.get(session, [])
        if sink in sinks:
            sinks.remove(sink)
        if not sinks:
            self._sinks.pop(session, None)

    async def send(self, peer: PeerId, head: StepHead, raw: bytes | memoryview = b"") -> None:
        """Delivers here, or sends to `peer`; a stale stream is replaced once. Raises the network's errors."""
        if peer == self._network.peer_id:
            await self._deliver(peer, head, memoryview(raw))
            return
        sending = asyncio.ensure_future(self._send_in_turn(peer, step_frame(head, raw)))
        self._sending.add(sending)
        sending.add_done_callback(self._sent)
        # A session that ends in the middle of its write would reset the stream under the frames of all others.
        await asyncio.shield(sending)

    def _sent(self, sending: asyncio.Future[None]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            log.debug("a step wasn't sent: %s", error)

    async def _send_in_turn(self, peer: PeerId, frame: bytes) -> None:
        async with self._locks.setdefault(peer, asyncio.Lock()):
            reused = peer in self._streams
            try:
                await self._send_once(peer, frame)
            except StreamClosed:
                if not reused:
                    raise
                await self._send_once(peer, frame)

    async def handle(self, stream: Stream) -> None:
        """Takes in another node's frames until it ends the stream."""
        while True:
            try:
                frame = await stream.receive(3_600.0)
            except StreamClosed:
                return
            head, raw = parse_step(frame)
            await self._deliver(stream.peer, head, raw)

    async def close(self) -> None:
        for stream in self._streams.values():
            stream.reset()
        self._streams.clear()

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

    async def _deliver(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        for sink in list(self._sinks.get(head.session, ())):
            try:
                await sink(sender, head, raw)
            except MfError as error:
                log.warning(
                    "a step from %s is refused: %s",
                    sender,
                    error,
                    extra={"event": "step_refused", "fields": {"peer": sender, "reason": error.message}},
                )
