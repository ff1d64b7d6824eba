"""The data plane's connections: shards to get are answered here, line by line; every other request goes to the application behind.

Most of a swarm's bytes are shards being read, in requests of a MiB or two. For those the application's router, request and
response objects, writer and a timer a write cost more than hashing, signing and sending the bytes: 2 ms of 2.5 a request.
So a connection begins here. `PUT /shard/` it hands to what receives shards (`put_door.py`), and what is neither to the application, with
the connection for good.

asyncio's TLS copies what the socket doesn't take at once and moves up the rest after each write: pieces of 256 KiB, each waited for,
halve a server's time. Rejected: own TLS over the socket (faster by a tenth, and a second event loop to care for).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from node.transfer.serving import Bytes, Closable, Gate, ShardRequest, ShardServing
from protocol import limits
from protocol.errors import BadInput, MfError

log = logging.getLogger(__name__)

WRITE_TIMEOUT = 20.0
IDLE_AT_MOST = 30.0
PIECE = 256 * limits.KIB
UNSENT_AT_MOST = 64 * limits.KIB
MAX_HEAD = 40 * limits.KIB
"""A grant of 16 KiB in base64, and room for the other fields."""

_PREFIX = b"GET /shard/"
_PUT = b"PUT /shard/"
_LINE = re.compile(rb"GET /shard/([^ /?]{1,256})/([^ /?]{1,64})(?:\?([^ ]{0,256}))? HTTP/1\.1")


def error_body(error: MfError) -> bytes:
    return json.dumps(error.to_wire(), default=str).encode()


class Door(asyncio.Protocol):
    """One connection; one request at a time, the next ones wait in the buffer. `others` makes the application's protocol, `puts` takes a
    connection over with what has come of a put."""

    def __init__(
        self,
        serving: ShardServing,
        gate: Gate,
        others: Callable[[], asyncio.Protocol],
        puts: Callable[[asyncio.Transport, bytes], None],
        open_doors: set[Closable],
    ) -> None:
        self._serving, self._gate, self._others, self._puts, self._open = serving, gate, others, puts, open_doors
        self.write_timeout = WRITE_TIMEOUT
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._paused = False
        self._head = b""
        self._begun = self._keep = False
        self._idle: asyncio.TimerHandle | None = None

    # As a protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=UNSENT_AT_MOST)
        self._open.add(self)
        self._rest()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._next()
        elif len(self._buffer) > MAX_HEAD and self._transport is not None:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        self._leave()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._task is not None:
            self._task.cancel()

    # Requests.

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_AT_MOST, self.close)

    def _leave(self) -> None:
        self._open.discard(self)
        if self._idle is not None:
            self._idle.cancel()

    def _next(self) -> None:
        if self._transport is None or not self._buffer:
            return
        if not self._buffer.startswith(_PREFIX[: len(self._buffer)]):
            if not _PUT.startswith(self._buffer[: len(_PUT)]) or len(self._buffer) >= len(_PUT):
                self._hand_over()
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and len(self._buffer) <= MAX_HEAD:
            return
        head = bytes(self._buffer[: end if end >= 0 else MAX_HEAD])
        del self._buffer[: end + 4 if end >= 0 else len(self._buffer)]
        if self._idle is not None:
            self._idle.cancel()
        self._task = asyncio.get_running_loop().create_task(self._answer(head))

    def _hand_over(self) -> None:
        if self._transport is None:
            return
        self._leave()
        if self._buffer.startswith(_PUT):
            transport, self._transport = self._transport, None
            self._puts(transport, bytes(self._buffer))
            return
        application = self._others()
        self._transport.set_protocol(application)
        application.connection_made(self._transport)
        application.data_received(bytes(self._buffer))

    async def _answer(self, head: bytes) -> None:
        self._begun, self._keep, self._head = False, True, b""
        try:
            with self._gate.entered():
                await self._serving.serve(self._parse(head), self)
                self._flush()
        except MfError as error:
            self._refuse(error)
        except (ConnectionError, asyncio.CancelledError):
            self._keep = False
        except Exception:  # boundary: one request's fault is answered and logged, the server lives on
            log.exception("a transfer request failed")
            self._refuse(MfError("the request failed at this node"))
        self._task = None
        if self._transport is None:
            return
        if not self._keep:
            self._transport.close()
            return
        self._rest()
        self._transport.resume_reading()
        self._next()

    def _parse(self, head: bytes) -> ShardRequest:
        line, *lines = head.split(b"\r\n")
        found = _LINE.fullmatch(line)
        fields = {name.strip().lower(): value.strip() for name, _, value in (field.partition(b":") for field in lines)}
        if found is None or b"content-length" in fields or b"transfer-encoding" in fields:
            self._keep = False
            raise BadInput("not GET /shard/ENCODING/J?first=A&count=C HTTP/1.1, without a body and with a head of at most 40 KiB")
        self._keep = fields.get(b"connection", b"").lower() != b"close"
        encoding, shard, query = ((text or b"").decode("latin-1") for text in found.groups())
        return ShardRequest.parse(encoding, shard, query, fields.get(b"mf-grant", b"").decode("latin-1"))

    def _refuse(self, error: MfError) -> None:
        if self._transport is None:
            return
        if self._begun:
            # Half an answer is out already: only a broken line tells the client.
            self._transport.abort()
            self._transport = None
            return
        body = error_body(error)
        self._transport.write(answer_head(error.status, "application/json", len(body), self._keep) + body)

    # As an `Out`.

    async def begin(self, length: int) -> None:
        self._begun = True
        self._head = answer_head(200, "application/octet-stream", length, self._keep)

    async def send(self, data: Bytes) -> None:
        view = memoryview(data)
        if len(view) + len(self._head) < PIECE // 16:
            # With what follows, rather than in a record and a packet of its own.
            self._head += view
            return
        for at in range(0, len(view), PIECE):
            if self._transport is None:
                raise ConnectionResetError("the client left")
            piece = view[at : at + PIECE]
            self._transport.write(b"".join((self._head, piece)) if self._head else piece)
            self._head = b""
            if self._paused:
                await self._drained()

    def _flush(self) -> None:
        if self._head and self._transport is not None:
            self._transport.write(self._head)
        self._head = b""

    async def _drained(self) -> None:
        loop = asyncio.get_running_loop()
        self._resumed = loop.create_future()
        # Taking nothing at all for so long: the transport asks for more as soon as the client takes some.
        timer = loop.call_later(self.write_timeout, self.close)
        try:
            await self._resumed
        finally:
            timer.cancel()
            self._resumed = None


def answer_head(status: int, kind: str, length: int, keep: bool) -> bytes:
    connection = "" if keep else "Connection: close\r\n"
    text = f"HTTP/1.1 {status} {_reason(status)}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{connection}\r\n"
    return text.encode("ascii")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
