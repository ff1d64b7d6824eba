"""Calls between two processes of one node over a Unix socket, with descriptors passed beside.

Both ends may call. A message is a 4-byte big-endian length and a canonical msgpack map:
{"id", "method", "params", "fds"} asks, {"id", "result", "fds"} answers, {"id", "error"} refuses, {"id", "cancel"} tells that the asker doesn't wait any more. `fds` counts the
descriptors sent along; SCM_RIGHTS keeps their order, so each message takes its own from the front of the queue.

Rejected: asyncio streams (they drop ancillary data), multiprocessing (pickle), one descriptor per request
path (races on names). A send is never cancelled half-way: it runs as a task of its own under a lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from protocol import limits
from protocol.errors import DeadlineExceeded, MfError, Unavailable, error_from_wire
from protocol.framing import pack, unpack_plain

T = TypeVar("T")
Method = Callable[[Any, list[int]], Awaitable[Any]]
"""(params as plain values, descriptors, now the method's to close) -> a Record, plain values or None."""

MAX_MESSAGE = 128 * limits.MIB
_MAX_FDS = 64
_RECEIVE = 256 * limits.KIB
log = logging.getLogger(__name__)


class ChannelClosed(Unavailable):
    """The process at the other end is gone."""

    code = "process_gone"


def _frame(message: dict[str, Any]) -> bytes:
    payload = pack(message)
    return len(payload).to_bytes(4, "big") + payload


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Channel:
    """One end. `methods` serves the other end's calls; `closed` is set when the other end is gone."""

    def __init__(self, sock: socket.socket, methods: Mapping[str, Method], name: str) -> None:
        self._sock = sock
        self._methods = methods
        self._name = name
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._next = 1
        self._fds: list[int] = []
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._writes: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    def start(self) -> None:
        """Begins to read; call from the running loop."""
        self._sock.setblocking(False)
        self._reader = asyncio.create_task(self._read(), name=f"{self._name} reader")

    async def call(self, method: str, params: Any, kind: type[T], *, fds: Sequence[int] = (), timeout: float | None = None) -> T:
        """The other end's answer as `kind`; raises its error, `ChannelClosed` or `DeadlineExceeded`."""
        if self.closed.is_set():
            raise ChannelClosed(f"the {self._name} is not running")
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._send({"id": number, "method": method, "params": params, "fds": len(fds)}, fds)
            async with asyncio.timeout(timeout):
                message, received = await future
        except asyncio.CancelledError:
            self._tell_cancelled(number)
            raise
        except TimeoutError:
            self._tell_cancelled(number)
            raise DeadlineExceeded(f"the {self._name} didn't answer {method} within {timeout} s") from None
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # looked at, also where the sending failed first
        for fd in received:
            os.close(fd)
        if "error" in message:
            raise error_from_wire(message["error"])
        return msgspec.convert(message.get("result"), kind, builtin_types=(bytes,))

    def _tell_cancelled(self, number: int) -> None:
        """Nobody waits for this answer any more: the other end stops the work, in its own time."""
        if not self.closed.is_set():
            task = asyncio.create_task(self._write(_frame({"id": number, "cancel": True}), []))
            self._writes.add(task)
            task.add_done_callback(self._forget_write)

    def _forget_write(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a message to the %s didn't go: %s", self._name, task.exception())

    async def notify(self, method: str, params: Any, *, fds: Sequence[int] = ()) -> None:
        """Tells without waiting for an answer."""
        await self._send({"id": 0, "method": method, "params": params, "fds": len(fds)}, fds)

    async def close(self) -> None:
        """Cancels what still runs for the other end, and waits for it."""
        self._end()
        rest = [task for task in (self._reader, *self._tasks) if task is not None and task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, *self._writes, return_exceptions=True)

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        task = asyncio.create_task(self._write(_frame(message), list(fds)))
        self._writes.add(task)
        task.add_done_callback(self._forget_write)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by the channel's end, not by the caller's
                raise ChannelClosed(f"the {self._name} is gone") from None
            raise

    async def _write(self, data: bytes, fds: list[int]) -> None:
        loop = asyncio.get_running_loop()
        async with self._lock:
            try:
                sent = 0
                if fds:
                    sent = await self._send_fds(data, fds)
                await loop.sock_sendall(self._sock, memoryview(data)[sent:])
            except OSError as error:
                self._end()
                raise ChannelClosed(f"the {self._name} is gone: {error.strerror}") from error

    async def _send_fds(self, data: bytes, fds: list[int]) -> int:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return socket.send_fds(self._sock, [data[:_RECEIVE]], fds)
            except BlockingIOError:
                writable = loop.create_future()
                loop.add_writer(self._sock, _settle, writable)
                try:
                    await writable
                finally:
                    if not self.closed.is_set():
                        loop.remove_writer(self._sock)

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, _RECEIVE, _MAX_FDS)
                self._fds += fds
                return data
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(self._sock, _settle, readable)
                try:
                    await readable
                finally:
                    if not self.closed.is_set():
                        loop.remove_reader(self._sock)

    async def _read(self) -> None:
        buffer = bytearray()
        try:
            while data := await self._receive():
                buffer += data
                while len(buffer) >= 4 and len(buffer) >= 4 + int.from_bytes(buffer[:4], "big"):
                    size = int.from_bytes(buffer[:4], "big")
                    self._dispatch(bytes(memoryview(buffer)[4 : 4 + size]))
                    del buffer[: 4 + size]
        except (OSError, MfError) as error:
            log.warning("channel to the %s failed: %s", self._name, error)
        finally:
            self._end()

    def _dispatch(self, payload: bytes) -> None:
        message = unpack_plain(payload, f"message of the {self._name}", MAX_MESSAGE)
        count = int(message.get("fds", 0))
        fds, self._fds = self._fds[:count], self._fds[count:]
        if "method" in message:
            self._begin(message, fds)
            return
        if message.get("cancel"):
            if (task := self._serving.get(int(message["id"]))) is not None:
                task.cancel()
            return
        future = self._waiting.get(int(message.get("id", 0)))
        if future is not None and not future.done():
            future.set_result((message, fds))
        else:
            for fd in fds:
                os.close(fd)

    def _begin(self, message: dict[str, Any], fds: list[int]) -> None:
        number = int(message["id"])
        task = asyncio.create_task(self._serve(message, fds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if number:
            self._serving[number] = task
            task.add_done_callback(lambda _: self._serving.pop(number, None))

    async def _serve(self, message: dict[str, Any], fds: list[int]) -> None:
        number, name = int(message["id"]), str(message["method"])
        try:
            method = self._methods.get(name)
            if method is None:
                for fd in fds:
                    os.close(fd)
                raise MfError(f"the {self._name} was asked for {name!r}, which this end doesn't serve")
            reply = {"id": number, "result": await method(message.get("params"), fds)}
        except MfError as error:
            reply = {"id": number, "error": error.to_wire()}
        except Exception as error:  # boundary: a call's fault goes to the caller, the process lives on
            log.exception("%s failed in a call of the %s", name, self._name)
            reply = {"id": number, "error": MfError(f"{name}: {type(error).__name__}: {error}").to_wire()}
        if number:
            try:
                await self._send(reply, ())
            except ChannelClosed:
                log.debug("the %s left before the answer to %s", self._name, name)

    def _end(self) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        # A socket closed while the loop still watches it would leave a stale watch on its number.
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        self._sock.close()
        for task in (self._reader, *self._writes):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelClosed(f"the {self._name} is gone"))
