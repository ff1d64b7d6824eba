"""Step frames between stages: one long-lived connection towards each peer, every frame checked for its sender.

Frames travel over a connection of their own (node/step_links.py), or where there can't be one over a libp2p stream (`/mf/step/1`).
A frame for this node itself takes no network. What sessions give in one turn (node/turn.py) for the same peer goes there as one frame,
and what came as one is handed on in one turn. Frames go to the sinks registered for their session; one that comes from another
peer than the session's route says is dropped and logged, so that nobody can slip a hidden state into a session of others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from node.network.interface import Network, Stream, StreamClosed
from node.step_links import RETRY, Link, dial_link
from node.traffic import Traffic, current
from node.turn import Turn
from protocol import limits
from protocol.bundles import AROUND, EACH, bundle, is_bundle, unbundle
from protocol.errors import MfError
from protocol.ids import PeerId
from protocol.messages import STEP_PROTOCOL, StepHead, parse_step, step_frame

log = logging.getLogger(__name__)
Sink = Callable[[PeerId, StepHead, memoryview], None]
"""(sender, head, raw): must return quickly; raises `MfError` for a frame it refuses."""
SEND_TIMEOUT = 5.0


Failed = Callable[[MfError], None]


class Steps:
    def __init__(self, network: Network, turn: Turn | None = None) -> None:
        self._network = network
        self._turn = turn or Turn()
        self._kept: dict[PeerId, list[tuple[bytes, Failed]]] = {}
        self._sinks: dict[bytes, list[Sink]] = {}
        self._traffic: dict[bytes, Traffic] = {}
        self._links: dict[PeerId, Link] = {}
        self._no_link: dict[PeerId, float] = {}
        self._streams: dict[PeerId, Stream] = {}
        self._locks: dict[PeerId, asyncio.Lock] = {}
        self._sending: set[asyncio.Future[None]] = set()

    def listen(self, session: bytes, sink: Sink) -> None:
        """Frames of `session` go to `sink`; a node that is entry and stage of one session has two."""
        self._sinks.setdefault(session, []).insert(0, sink)  # a stage is in more of a hurry than the entry, and comes later
        if (traffic := current()) is not None:
            self._traffic.setdefault(session, traffic)

    def forget(self, session: bytes, sink: Sink) -> None:
        sinks = self._sinks.get(session, [])
        if sink in sinks:
            sinks.remove(sink)
        if not sinks:
            self._sinks.pop(session, None)
            self._traffic.pop(session, None)

    async def send(self, peer: PeerId, head: StepHead, raw: bytes | memoryview = b"") -> None:
        """Delivers here, or sends to `peer`; a stale connection is replaced once. Raises the network's errors."""
        if peer == self._network.peer_id:
            self._deliver(peer, head, memoryview(raw))
            return
        frame, lock = self._framed(head, raw), self._locks.setdefault(peer, asyncio.Lock())
        link = self._links.get(peer)
        if link is not None and not link.closed and not lock.locked():
            link.write(frame)
            await link.drained(SEND_TIMEOUT)
            return
        sending = self._keep(self._send_in_turn(peer, frame, lock))
        # A session that ends in the middle of its write would reset the stream under the frames of all others.
        await asyncio.shield(sending)

    def post(self, peer: PeerId, head: StepHead, raw: bytes, failed: Failed) -> None:
        """As `send`, at once where a connection stands, and without waiting; `failed` is told when it can't be sent."""
        if peer == self._network.peer_id:
            self._deliver(peer, head, memoryview(raw))
            return
        frame = self._framed(head, raw)
        if self._turn.keeps(self._post_kept):
            self._kept.setdefault(peer, []).append((frame, failed))
        elif (link := self._link_now(peer)) is not None:
            _write(link, frame, (failed,))
        else:
            self._post(peer, [(frame, failed)])

    def count(self, session: bytes, size: int) -> None:
        """So many bytes of a frame of the session's went another way."""
        if (traffic := self._traffic.get(session)) is not None:
            traffic.sent += size

    def _link_now(self, peer: PeerId) -> Link | None:
        """The peer's connection, where nothing waits for it."""
        link, lock = self._links.get(peer), self._locks.get(peer)
        return None if link is None or link.closed or (lock is not None and lock.locked()) else link

    def _post_kept(self) -> None:
        kept, self._kept = self._kept, {}
        for peer, frames in kept.items():
            self._post(peer, frames)

    def _post(self, peer: PeerId, frames: list[tuple[bytes, Failed]]) -> None:
        link = self._link_now(peer)
        if link is None:
            lock = self._locks.setdefault(peer, asyncio.Lock())
            for frame, failed in frames:
                self._keep(self._send_in_turn(peer, frame, lock)).add_done_callback(partial(_tell, failed))
            return
        for some in bundles(frames, link.bundle):
            _write(link, bundle([frame for frame, _failed in some]), [failed for _frame, failed in some])

    def take(self, sender: PeerId, frame: bytes | memoryview) -> None:
        """A frame from a peer, whichever way it came, or a bundle of them."""
        if not is_bundle(frame):
            self._take_one(sender, frame)
            return
        with self._turn:
            for one in unbundle(frame):
                self._take_one(sender, one)

    def _take_one(self, sender: PeerId, frame: bytes | memoryview) -> None:
        head, raw = parse_step(frame)
        if (traffic := self._traffic.get(head.session)) is not None:
            traffic.received += len(frame)
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

    def _framed(self, head: StepHead, raw: bytes | memoryview) -> bytes:
        frame, traffic = step_frame(head, raw), self._traffic.get(head.session)
        if traffic is not None:
            traffic.sent += len(frame)
        return frame

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
            self._no_link[peer] = now + RETRY
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


def _write(link: Link, frame: bytes, failed: Iterable[Failed]) -> None:
    try:
        link.write(frame)
    except MfError as error:
        for told in failed:
            told(error)


def bundles(frames: Sequence[tuple[bytes, Failed]], most: int) -> Iterator[Sequence[tuple[bytes, Failed]]]:
    """In their order, at most `most` at once and no more bytes than travel as one."""
    begin, size = 0, AROUND
    for at, (frame, _failed) in enumerate(frames):
        size += EACH + len(frame)
        if at > begin and (at - begin >= most or size > limits.MAX_ACTIVATION_FRAME):
            yield frames[begin:at]
            begin, size = at, AROUND + EACH + len(frame)
    if begin < len(frames):
        yield frames[begin:]


def _tell(failed: Failed, done: asyncio.Future[None]) -> None:
    error = None if done.cancelled() else done.exception()
    if isinstance(error, MfError):
        failed(error)
