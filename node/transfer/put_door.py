"""The data plane's connections while shards are put: the body goes from TLS straight into the buffers that are hashed and written.

aiohttp hands a body out as an object for each record of 16 KiB, which is then gathered and copied: twice the CPU seconds of receiving,
hashing and writing the bytes. So a request that begins with `PUT /shard/` comes here from the door (`door.py`), with its connection.
The next request on it may be another put; any other goes to a door again.

Nothing is taken from the connection but what was asked for. A client that sends nothing for `SILENT_AT_MOST` is refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable

from node.store.interface import ShardKey
from node.transfer.door import IDLE_AT_MOST, MAX_HEAD, Door, answer_head, error_body
from node.transfer.receiving import Receiving
from node.transfer.serving import Closable, Gate, shard_key
from protocol.errors import BadInput, DeadlineExceeded, MfError

log = logging.getLogger(__name__)

SILENT_AT_MOST = 30.0
LINGER = 1.0
"""Seconds for which a refused client may go on sending before it is cut: cut at once, it would lose the answer."""

PREFIX = b"PUT /shard/"
_LINE = re.compile(rb"PUT /shard/([^ /?]{1,256})/([^ /?]{1,64}) HTTP/1\.1")


class Closed(ConnectionError):
    """The client has left."""


class PutDoor(asyncio.BufferedProtocol):
    """One connection, taken over with what has come of its next request already; `door` makes the protocol for what is no put."""

    def __init__(self, receiving: Receiving, gate: Gate, door: Callable[[], Door], open_doors: set[Closable]) -> None:
        self._receiving, self._gate, self._door, self._open = receiving, gate, door, open_doors
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._target = memoryview(bytearray())
        self._filled = 0
        self._over = b""
        self._left = 0
        self._lost = self._any = False
        self._last = 0.0
        self._waiting: asyncio.Future[None] | None = None

    def take_over(self, transport: asyncio.Transport, begun: bytes) -> None:
        transport.pause_reading()
        transport.set_protocol(self)
        self._transport, self._over = transport, begun
        self._open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="puts on a connection")

    def close(self) -> None:
        self._open.discard(self)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._end()

    # As a protocol.

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._target[self._filled :] or _SPARE

    def buffer_updated(self, count: int) -> None:
        if self._filled == len(self._target):
            self.close()  # it was paused: what comes now was never asked for
            return
        self._filled += count
        self._last = time.monotonic()
        full = self._filled == len(self._target)
        if full and self._transport is not None:
            self._transport.pause_reading()
        if full or self._any:
            self._wake()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self)
        self._end()

    def _end(self) -> None:
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _more(self, within: float, some: bool = False) -> None:
        """Until the target is full, or `some` has come. `Closed`, or `DeadlineExceeded` when nothing came for `within` seconds."""
        if self._transport is None or self._lost:
            raise Closed("the client left")
        loop = asyncio.get_running_loop()
        before, self._waiting, self._any, self._last = self._filled, loop.create_future(), some, time.monotonic()
        watch = loop.call_later(within, self._watch, within)
        self._transport.resume_reading()
        try:
            await self._waiting
        finally:
            watch.cancel()
            self._waiting = None
        if self._filled == len(self._target) or (some and self._filled > before):
            return
        if self._lost:
            raise Closed("the client left")
        raise DeadlineExceeded(f"the client sent nothing for {within:g} s")

    def _watch(self, within: float) -> None:
        left = self._last + within - time.monotonic()
        if left <= 0:
            self._wake()
        elif self._waiting is not None and not self._waiting.done():
            asyncio.get_running_loop().call_later(left, self._watch, within)

    # As a `Body`.

    async def fill(self, view: memoryview) -> None:
        if len(view) > self._left:
            raise BadInput(f"the body ends {len(view) - self._left} bytes early")
        done = min(len(self._over), len(view))
        view[:done], self._over = self._over[:done], self._over[done:]
        self._target, self._filled = view, done
        try:
            if self._filled < len(view):
                await self._more(SILENT_AT_MOST)
        finally:
            self._left -= self._filled
            self._target, self._filled = memoryview(bytearray()), 0

    # Requests.

    async def _serve(self) -> None:
        try:
            while (head := await self._head()) is not None:
                if not await self._answer(head):
                    await self._linger()
                    break
        except (ConnectionError, DeadlineExceeded):
            pass
        except Exception:  # boundary: one connection's fault is logged, the server lives on
            log.exception("a connection for puts failed")
        finally:
            self.close()

    async def _head(self) -> bytes | None:
        """The next request's, without its body; None when the connection was given to a door, for it isn't a put."""
        while (end := self._over.find(b"\r\n\r\n")) < 0 and len(self._over) <= MAX_HEAD and PREFIX.startswith(self._over[: len(PREFIX)]):
            room = bytearray(MAX_HEAD)
            self._target, self._filled = memoryview(room), 0
            try:
                await self._more(IDLE_AT_MOST, some=True)
            finally:
                self._over += bytes(room[: self._filled])
                self._target, self._filled = memoryview(bytearray()), 0
                if self._transport is not None:
                    self._transport.pause_reading()
        if not self._over.startswith(PREFIX):
            self._hand_over()
            return None
        end = end if end >= 0 else len(self._over)
        head, self._over = self._over[:end], self._over[end + 4 :]
        return head

    def _hand_over(self) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self._open.discard(self)
        door = self._door()
        transport.set_protocol(door)
        door.connection_made(transport)
        transport.resume_reading()
        door.data_received(self._over)

    async def _answer(self, head: bytes) -> bool:
        """Whether another request may follow."""
        keep = False
        try:
            with self._gate.entered():
                key, grant, length, keep = self._parse(head)
                info = await self._receiving.take(key, grant, length, self)
            body, status = json.dumps({"bytes": info.bytes}).encode(), 201
        except MfError as error:
            body, status = error_body(error), error.status
        except ConnectionError:
            raise
        except Exception:  # boundary: one request's fault is answered and logged
            log.exception("a transfer request failed")
            body, status = error_body(MfError("the request failed at this node")), MfError.status
        keep = keep and self._left == 0
        if self._transport is None or self._lost:
            raise Closed("the client left")
        self._transport.write(answer_head(status, "application/json", len(body), keep) + body)
        return keep

    def _parse(self, head: bytes) -> tuple[ShardKey, str, int | None, bool]:
        line, *lines = head.split(b"\r\n")
        found = _LINE.fullmatch(line)
        fields = {name.strip().lower(): value.strip() for name, _, value in (field.partition(b":") for field in lines)}
        if found is None or len(head) > MAX_HEAD:
            raise BadInput("not PUT /shard/ENCODING/J HTTP/1.1 with a head of at most 40 KiB")
        text = fields.get(b"content-length", b"")
        length = int(text) if text.isdigit() and len(text) <= 15 and b"transfer-encoding" not in fields else None
        self._left = length or 0
        if fields.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        keep = length is not None and fields.get(b"connection", b"").lower() != b"close"
        encoding, shard = (part.decode("latin-1") for part in found.groups())
        return shard_key(encoding, shard), fields.get(b"mf-grant", b"").decode("latin-1"), length, keep

    async def _linger(self) -> None:
        """Takes what still comes, for a moment, and throws it away."""
        end = time.monotonic() + LINGER
        room = memoryview(bytearray(MAX_HEAD))
        while (left := end - time.monotonic()) > 0:
            self._target, self._filled = room, 0
            await self._more(left, some=True)
        if self._transport is not None:
            self._transport.close()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_SPARE = memoryview(bytearray(1))
"""Where a byte lands that nobody asked for."""
