"""A libp2p stream as a `Wire`: one trio task writes what is queued, one always reads. Neither is ever cancelled.

To end both at once the stream is reset, and when even that write doesn't get through within a second, the
connection loses its socket: a peer that doesn't read can hold up its own connection only.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF

from node.network.bridge import Bridge
from node.network.interface import StreamClosed
from node.network.streams import FrameStream

_READ = 256 * 1024
_RESET_WITHIN = 1.0
log = logging.getLogger(__name__)
_Item = tuple[bytes | None, "asyncio.Future[None]"]


class TrioWire:
    """`abort` takes the whole connection down."""

    def __init__(self, bridge: Bridge, raw: Any, abort: Callable[[], None]) -> None:
        self._bridge = bridge
        self._raw = raw
        self._abort = abort
        self._out: trio.MemorySendChannel[_Item]
        self._queue: trio.MemoryReceiveChannel[_Item]
        self._out, self._queue = trio.open_memory_channel(math.inf)
        self._stream: FrameStream | None = None
        self._broken = False

    def start(self, stream: FrameStream) -> None:
        self._stream = stream
        self._bridge.spawn(self._write_all)
        self._bridge.spawn(self._read_all, stream)

    def write(self, data: bytes) -> asyncio.Future[None]:
        return self._put(data)

    def finish(self) -> asyncio.Future[None]:
        return self._put(None)

    def _put(self, data: bytes | None) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        if self._broken:
            done.set_exception(StreamClosed("the stream is closed"))
        else:
            self._bridge.call_soon(self._offer, data, done)
        return done

    def _offer(self, data: bytes | None, done: asyncio.Future[None]) -> None:
        try:
            self._out.send_nowait((data, done))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            _fail(done, "the stream is closed")

    async def _write_all(self) -> None:
        try:
            async for data, done in self._queue:
                try:
                    await (self._raw.close_write() if data is None else self._raw.write(data))
                except Exception as error:  # boundary: any error of libp2p's write means that the stream is over
                    _fail(done, f"the stream broke: {error or type(error).__name__}")
                    self._break(f"the stream broke: {type(error).__name__}")
                    return
                if not done.done():
                    done.set_result(None)
                if data is None:
                    return
        finally:
            self._out.close()
            self._fail_queued()

    def _fail_queued(self) -> None:
        while True:
            try:
                _, done = self._queue.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return
            _fail(done, "the stream is closed")

    async def _read_all(self, stream: FrameStream) -> None:
        try:
            while data := await self._raw.read(_READ):
                stream.fed(data)
        except StreamEOF:
            stream.ended_with(None)
        except Exception as error:  # boundary: any error of libp2p's read means that the stream is over
            self._break(f"the stream {stream.protocol} with {stream.peer} broke: {type(error).__name__}")
        else:
            stream.ended_with(None)

    def _break(self, why: str) -> None:
        """In trio: the other side or the connection is gone."""
        self._broken = True
        self._out.close()
        if self._stream is not None:
            self._stream.ended_with(StreamClosed(why))

    def reset(self) -> None:
        if not self._broken:
            self._broken = True
            self._bridge.spawn(self._reset)

    async def _reset(self) -> None:
        self._out.close()
        muxed = self._raw.muxed_stream
        waiting = muxed.conn.stream_events.get(muxed.stream_id)
        finished = trio.Event()

        async def reset() -> None:
            await self._raw.reset()
            finished.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset)
            with trio.move_on_after(_RESET_WITHIN):
                await finished.wait()
            if not finished.is_set():
                log.warning(
                    "a connection that takes no bytes is cut",
                    extra={"event": "connection_cut", "fields": {"peer": str(muxed.conn.peer_id)}},
                )
                self._abort()
        if waiting is not None:
            # yamux forgets the event without setting it, and the reader would wait for ever
            waiting.set()
            await trio.lowlevel.checkpoint()
            muxed.conn.stream_events.pop(muxed.stream_id, None)


def _fail(done: asyncio.Future[None], why: str) -> None:
    if not done.done():
        done.set_exception(StreamClosed(why))


def _seen(done: asyncio.Future[None]) -> None:
    """A fault nobody waits for any more isn't worth a warning of asyncio's."""
    if not done.cancelled():
        done.exception()
