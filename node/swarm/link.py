"""This node's questions to one peer, on one long-lived stream.

A question goes into a bounded queue that one task writes from, so that a question given up at its deadline never
cancels a write half-way. Answers that come after their deadline still show that the peer lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from node.network.interface import Stream, StreamClosed
from node.swarm.supervisor import Supervisor
from node.swarm.wire import Frame, body_of, decode, encode
from protocol.errors import BadInput, DeadlineExceeded, MfError, PeerFault, error_from_wire
from protocol.framing import Record
from protocol.ids import PeerId

T = TypeVar("T")
log = logging.getLogger(__name__)

_QUEUE = 256
_ASKED = 512
_SILENCE = 60.0
"""Seconds without an answer after which a stream is given up; pings are every few seconds."""

Heard = Callable[[PeerId, float, float], None]
"""(peer, when the question was asked, seconds it took), both by the monotonic clock."""


class Link:
    def __init__(self, stream: Stream, monotonic: Callable[[], float], heard: Heard) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._monotonic = monotonic
        self._heard = heard
        self._out: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._asked: dict[int, float] = {}
        self._next = 1
        self.closed = asyncio.Event()

    def start(self, supervisor: Supervisor) -> None:
        supervisor.spawn(self._write(), f"swarm writer to {self.peer}")
        supervisor.spawn(self._read(), f"swarm reader of {self.peer}")

    async def ask(self, kind: str, body: Record, reply: type[T], timeout: float) -> T:
        """The answer; `DeadlineExceeded`, `StreamClosed` or the error the peer sent."""
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._asked[number] = self._monotonic()
        while len(self._asked) > _ASKED:
            self._asked.pop(next(iter(self._asked)))
        self._enqueue(encode(number, kind, body))
        try:
            async with asyncio.timeout(timeout):
                frame = await future
        except TimeoutError:
            raise DeadlineExceeded(f"{self.peer} didn't answer {kind} within {timeout:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if frame.kind == "refused":
            raise error_from_wire(frame.body)
        return body_of(frame, reply)

    def tell(self, kind: str, body: Record) -> None:
        """Sends without wanting an answer."""
        self._enqueue(encode(0, kind, body))

    def close(self) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        self._stream.reset()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(StreamClosed(f"the swarm stream to {self.peer} ended"))
        self._waiting.clear()

    def _enqueue(self, data: bytes) -> None:
        if self.closed.is_set():
            raise StreamClosed(f"the swarm stream to {self.peer} has ended")
        try:
            self._out.put_nowait(data)
        except asyncio.QueueFull:
            self.close()
            raise PeerFault(f"{self.peer} doesn't read what it is sent: {_QUEUE} frames wait") from None

    async def _write(self) -> None:
        try:
            while True:
                await self._stream.send(await self._out.get())
        except MfError as error:
            log.debug("swarm stream to %s: %s", self.peer, error)
        finally:
            self.close()

    async def _read(self) -> None:
        try:
            while True:
                self._settle(decode(await self._stream.receive(_SILENCE)))
        except MfError as error:
            log.debug("swarm stream to %s: %s", self.peer, error)
        finally:
            self.close()

    def _settle(self, frame: Frame) -> None:
        if frame.kind not in ("reply", "refused"):
            raise BadInput(f"{self.peer} sent {frame.kind!r} where only answers go")
        asked = self._asked.pop(frame.id, None)
        if asked is None:
            return
        self._heard(self.peer, asked, self._monotonic() - asked)
        future = self._waiting.get(frame.id)
        if future is not None and not future.done():
            future.set_result(frame)
