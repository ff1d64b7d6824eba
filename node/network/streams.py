"""Frames over a wire of bytes: the half of a stream that both networks share.

A `Wire` moves bytes and never cancels a write half-way; `FrameStream` cuts them into frames, keeps what has
arrived in a queue bounded by count and bytes, and turns every end into `StreamClosed`, `PeerFault` or
`DeadlineExceeded`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol

from node.network.interface import Handler, StreamClosed
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, MfError, PeerFault
from protocol.framing import FrameReader, frame
from protocol.ids import PeerId
from protocol.messages import FRAME_LIMITS

MAX_QUEUED_FRAMES = 4_096
_QUEUED_BYTES = 8 * limits.MIB
_LINGER = 30.0
log = logging.getLogger(__name__)


class Wire(Protocol):
    """Moves bytes in order. All methods are called on the asyncio loop."""

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Done when the bytes are handed over; fails with `StreamClosed`. Cancelling the future changes nothing."""

    def finish(self) -> asyncio.Future[None]:
        """Ends our side after what was written."""

    def reset(self) -> None: ...


class FrameStream:
    """One stream. The wire calls `fed` with bytes as they arrive and `ended` at the end."""

    def __init__(self, peer: PeerId, protocol: str, wire: Wire) -> None:
        self._peer = peer
        self._protocol = protocol
        self.wire = wire
        self._limit = FRAME_LIMITS.get(protocol, limits.MAX_FRAME)
        self._reader = FrameReader(self._limit)
        self._frames: deque[bytes] = deque()
        self._queued = 0
        self._error: MfError | None = None
        self._arrived = asyncio.Event()
        self._closed = False
        self._ended = False
        self._linger: asyncio.TimerHandle | None = None

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def ended(self) -> bool:
        """No frame will come any more and none can be sent, or the other side has ended."""
        return self._ended

    async def send(self, payload: bytes, timeout: float = 5.0) -> None:
        if len(payload) > self._limit:
            raise BadInput(f"a frame of {len(payload)} bytes, {self._protocol} allows {self._limit}")
        if self._closed or (self._error is not None and not isinstance(self._error, _PoliteEnd)):
            raise StreamClosed(f"the stream {self._protocol} to {self._peer} is closed")
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self.wire.write(frame(payload)))
        except TimeoutError:
            self.reset()
            raise DeadlineExceeded(f"{self._peer} didn't take a frame on {self._protocol} within {timeout} s") from None
        except asyncio.CancelledError:
            self.reset()
            raise

    async def receive(self, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                while not self._frames and self._error is None:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"{self._peer} sent nothing on {self._protocol} within {timeout} s") from None
        if self._frames:
            payload = self._frames.popleft()
            self._queued -= len(payload)
            return payload
        assert self._error is not None
        raise (StreamClosed if isinstance(self._error, _PoliteEnd) else type(self._error))(self._error.message)

    async def close(self) -> None:
        if self._closed or (self._error is not None and not isinstance(self._error, _PoliteEnd)):
            return
        self._closed = True
        self._linger = asyncio.get_running_loop().call_later(_LINGER, self._lingered)
        try:
            async with asyncio.timeout(1.0):
                await asyncio.shield(self.wire.finish())
        except (TimeoutError, MfError):
            self.reset()

    def reset(self) -> None:
        if not (self._closed and self._ended):
            self.wire.reset()
        self._closed = True
        self.ended_with(StreamClosed(f"the stream {self._protocol} with {self._peer} was reset"))

    def fed(self, data: bytes) -> None:
        """Bytes from the other side. A frame too long or a queue too full ends the stream and names the peer."""
        if self._error is not None:
            return
        try:
            self._reader.feed(data)
            while (payload := self._reader.next_frame()) is not None:
                self._frames.append(payload)
                self._queued += len(payload)
        except BadInput as error:
            self._refuse(PeerFault(f"{self._peer} on {self._protocol}: {error.message}"))
            return
        if len(self._frames) > MAX_QUEUED_FRAMES or self._queued > self._limit + _QUEUED_BYTES:
            self._refuse(PeerFault(f"{self._peer} sent faster on {self._protocol} than this node reads: the queue is full"))
        self._arrived.set()

    def ended_with(self, error: MfError | None) -> None:
        """The other side ended (None) or the stream broke. The first verdict stays, frames before it can be taken."""
        self._ended = True
        if error is None:
            error = _PoliteEnd(f"{self._peer} ended the stream {self._protocol}")
        if self._error is None or isinstance(self._error, _PoliteEnd):
            self._error = error
        self._arrived.set()
        if self._closed and self._linger is not None:
            self._linger.cancel()

    def _refuse(self, error: PeerFault) -> None:
        log.warning("%s", error.message, extra={"event": "stream_refused", "fields": {"peer": self._peer, "protocol": self._protocol}})
        self._error = error
        self.reset()

    def _lingered(self) -> None:
        if not self._ended:
            self.reset()


class _PoliteEnd(StreamClosed):
    """The other side has sent all it wanted; we may still send."""


async def serve_stream(handler: Handler, stream: FrameStream) -> None:
    """Runs a handler to its end: closed when it returns, reset when it raises."""
    try:
        await handler(stream)
    except StreamClosed as error:
        log.debug("%s left while %s was served: %s", stream.peer, stream.protocol, error)
        stream.reset()
    except MfError as error:
        log.info("%s from %s ended: %s", stream.protocol, stream.peer, error)
        stream.reset()
    except Exception:  # boundary: a handler's fault resets its stream, the node lives on
        log.exception("the handler of %s failed for %s", stream.protocol, stream.peer)
        stream.reset()
    except asyncio.CancelledError:
        stream.reset()
        raise
    else:
        await stream.close()
