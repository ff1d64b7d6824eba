"""Calls between two processes of one node over a Unix socket, with descriptors passed beside.

Both ends may call. A message is a 4-byte big-endian length and a canonical msgpack map:
{"id", "method", "params", "fds"} asks, {"id", "result", "fds"} answers, {"id", "error"} refuses, {"id", "cancel"} says that
the asker doesn't wait any more, {"several"} holds such messages, without descriptors, that were sent together and are taken together
(node/turn.py). `fds` counts the descriptors sent along; SCM_RIGHTS keeps their order, so each message takes
its own from the front of the queue.

A message goes out at once where the socket takes it, and is handed on in the very callback that read it: the loops at both ends are
busy with gigabytes, and each turn of theirs that a message waits for costs it ten milliseconds. What the socket doesn't take stays
in the outbox, whole, whatever becomes of the sender. Where nothing stays nothing else is made for a message, no future and no copy: a
token's steps come when these caches hold a model's weights, and what is touched has to be fetched from memory (127 microseconds for
what takes 18 otherwise).

Rejected: asyncio streams (they drop ancillary data), multiprocessing (pickle), one descriptor per request
path (races on names), a task for each send and for reading (three turns of the loop more).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec

from node.turn import Turn
from protocol import limits
from protocol.descriptors import descriptors, room_for
from protocol.errors import BadInput, DeadlineExceeded, MfError, Unavailable, error_from_wire
from protocol.framing import unpack_plain

T = TypeVar("T")
Method = Callable[[Any, list[int]], Awaitable[Any]]
"""(params as plain values, descriptors, now the method's to close) -> a Record, plain values or None."""

Answered = Callable[[Any, MfError | None], None]
"""(result of the kind asked for, None) or (None, error)."""

MAX_MESSAGE = 128 * limits.MIB
_MAX_FDS = 64
_RECEIVE = 64 * limits.KIB
_BESIDE = room_for(_MAX_FDS)
_TOGETHER = 256
"""Messages in one."""
log = logging.getLogger(__name__)


class ChannelClosed(Unavailable):
    """The process at the other end is gone."""

    code = "process_gone"


class Unreadable(Unavailable):
    """The other end answered, and not what was asked for."""

    code = "unreadable_answer"


class _Message(msgspec.Struct):
    """A message of the other end, its contents still raw: who waits for them knows their kind."""

    id: int = 0
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"\xc0")
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: msgspec.Raw = msgspec.Raw(b"")
    cancel: bool = False
    fds: int = 0
    several: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_TOGETHER)] = []


def _frame(message: dict[str, Any]) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(4, "big") + payload


@dataclass
class _Outgoing:
    """What is left of a message that the socket didn't take; the descriptors go with its first bytes. `gone` once it has all of it."""

    data: memoryview
    fds: list[int]
    gone: asyncio.Future[None]
    owned: list[int] = field(default_factory=list)

    def end(self, error: MfError | None = None) -> None:
        for fd in self.owned:
            os.close(fd)
        if self.gone.done():
            return
        if error is None:
            self.gone.set_result(None)
        else:
            self.gone.set_exception(error)


class Channel:
    """One end. `methods` serves the other end's calls; `closed` is set when the other end is gone."""

    def __init__(self, sock: socket.socket, methods: Mapping[str, Method], name: str, turn: Turn | None = None) -> None:
        """What `turn` keeps of this node's messages, and what the other end sends together, goes together."""
        self._turn = turn or Turn()
        self._kept: list[dict[str, Any]] = []
        self._sock = sock
        self._methods = methods
        self._name = name
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._callbacks: dict[int, tuple[Any, Answered]] = {}
        self._next = 1
        self._fds: list[int] = []
        self._buffer, self._room = bytearray(), memoryview(bytearray(_RECEIVE))
        self._outbox: deque[_Outgoing] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: dict[int, asyncio.Task[None]] = {}
        self.closed = asyncio.Event()

    def start(self) -> None:
        """Begins to read; call from the running loop."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    async def call(
        self, method: str, params: Any, kind: type[T], *, fds: Sequence[int] = (), timeout: float | None = None, together: bool = False
    ) -> T:
        """The other end's answer as `kind`; raises its error, `ChannelClosed`, `Unreadable` or `DeadlineExceeded`.

        `together`: goes with all that is called so in the same turn of the loop.
        """
        if self.closed.is_set():
            raise ChannelClosed(f"the {self._name} is not running")
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            message = {"id": number, "method": method, "params": params, "fds": len(fds)}
            if together and not fds:
                self._keep(message)
            else:
                await self._send(message, fds)
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
        try:
            return msgspec.convert(message.get("result"), kind, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise Unreadable(f"the {self._name} answered {method} with something else than {kind.__name__}: {error}") from None

    def ask(self, method: str, params: Any, kind: Any, answered: Answered) -> None:
        """As `call`, for what can't wait two turns of the loop: `answered` is called in the callback that read the answer, once.

        There is no deadline: whoever asks so looks after it.
        """
        number, self._next = self._next, self._next + 1
        self._callbacks[number] = kind, answered
        message = {"id": number, "method": method, "params": params, "fds": 0}
        if self._turn.keeps(self._send_kept):
            self._kept.append(message)
        else:
            self._post(message, ())
        if self.closed.is_set() and self._callbacks.pop(number, None) is not None:
            answered(None, ChannelClosed(f"the {self._name} is gone"))

    @property
    def waiting(self) -> int:
        """Calls that the other end hasn't answered."""
        return len(self._waiting) + len(self._callbacks)

    def _tell_cancelled(self, number: int) -> None:
        """Nobody waits for this answer any more: the other end stops the work, in its own time."""
        if not self.closed.is_set():
            self._post({"id": number, "cancel": True}, ())

    async def notify(self, method: str, params: Any, *, fds: Sequence[int] = ()) -> None:
        """Tells without waiting for an answer."""
        await self._send({"id": 0, "method": method, "params": params, "fds": len(fds)}, fds)

    async def close(self) -> None:
        """Cancels what still runs for the other end, and waits for it."""
        self._end()
        rest = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        outgoing = self._post(message, fds)
        if outgoing is not None:
            await asyncio.shield(outgoing.gone)
        elif self.closed.is_set():
            raise ChannelClosed(f"the {self._name} is gone")

    def _keep(self, message: dict[str, Any]) -> None:
        if not self._kept:
            asyncio.get_running_loop().call_soon(self._send_kept)
        self._kept.append(message)

    def _send_kept(self) -> None:
        kept, self._kept = self._kept, []
        for at in range(0, len(kept), _TOGETHER):
            some = kept[at : at + _TOGETHER]
            self._post(some[0] if len(some) == 1 else {"several": some}, ())

    def _post(self, message: dict[str, Any], fds: Sequence[int]) -> _Outgoing | None:
        """Sends a message behind those kept. What the socket doesn't take of it waits in the outbox, and is returned; None where nothing is
        left, or nobody there."""
        if self._kept:
            self._send_kept()
        rest = memoryview(_frame(message))
        if not self._outbox and not fds:
            rest = self._send_at_once(rest)
        if not rest or self.closed.is_set():
            return None
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Looked at also where nobody waits: a channel that ends isn't a fault of each message.
        gone.add_done_callback(lambda done: done.cancelled() or done.exception())
        outgoing = _Outgoing(rest, list(fds), gone)
        self._outbox.append(outgoing)
        if len(self._outbox) == 1:
            self._flush()
        if outgoing.fds:
            # They wait for room, and whoever gave them may not.
            outgoing.fds = outgoing.owned = [os.dup(fd) for fd in outgoing.fds]
        return outgoing

    def _send_at_once(self, data: memoryview) -> memoryview:
        """What is left of `data`: nothing by far the most often, and then nothing else is to be done for it."""
        if self.closed.is_set():
            return data
        try:
            return data[self._sock.send(data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            self._fail_sending(error)
            return data

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._outbox:
                self._send_some(self._outbox[0])
                if not self._outbox[0].data:
                    self._outbox.popleft().end()
        except BlockingIOError:
            loop.add_writer(self._sock, self._flush)
            return
        except OSError as error:
            self._fail_sending(error)
            return
        loop.remove_writer(self._sock)

    def _fail_sending(self, error: OSError) -> None:
        log.debug("the %s takes no more messages: %s", self._name, error.strerror)
        self._end()

    def _send_some(self, first: _Outgoing) -> None:
        if first.fds:
            sent = socket.send_fds(self._sock, [first.data[:_RECEIVE]], first.fds)
            first.fds = []
        else:
            sent = self._sock.send(first.data)
        first.data = first.data[sent:]

    def _readable(self) -> None:
        try:
            while not self.closed.is_set():
                count, beside, _flags, _address = self._sock.recvmsg_into((self._room,), _BESIDE)
                if beside:
                    self._fds += descriptors(beside)
                if not count:
                    self._end()
                    return
                if not self._buffer and count >= 4 and count == 4 + int.from_bytes(self._room[:4], "big"):
                    self._dispatch(self._room[4:count].tobytes())  # the common case: one whole message
                else:
                    self._buffer += self._room[:count]
                    self._take_messages()
                if count < _RECEIVE:
                    return  # the loop calls again where there is more
        except BlockingIOError:
            return
        except (OSError, MfError) as error:
            log.warning("channel to the %s failed: %s", self._name, error)
            self._end()

    def _take_messages(self) -> None:
        buffer = self._buffer
        while len(buffer) >= 4 and len(buffer) >= 4 + int.from_bytes(buffer[:4], "big"):
            size = int.from_bytes(buffer[:4], "big")
            payload = bytes(memoryview(buffer)[4 : 4 + size])
            del buffer[: 4 + size]
            self._dispatch(payload)

    def _plain(self, raw: msgspec.Raw) -> Any:
        return unpack_plain(memoryview(raw), f"message of the {self._name}", MAX_MESSAGE)

    def _dispatch(self, payload: bytes | memoryview, inner: bool = False) -> None:
        message = self._read(payload)
        if message.several:
            if inner:
                raise BadInput(f"message of the {self._name}: several within several")
            self._dispatch_all(message.several)
            return
        count = max(0, message.fds)
        fds, self._fds = self._fds[:count], self._fds[count:]
        if message.method is not None:
            self._begin(message.id, message.method, self._plain(message.params), fds)
            return
        if message.cancel:
            if (task := self._serving.get(message.id)) is not None:
                task.cancel()
        elif message.id in self._callbacks:
            self._answer_callback(message, fds)
        else:
            self._answer(message, fds)

    def _read(self, payload: bytes | memoryview) -> _Message:
        try:
            return msgspec.msgpack.decode(payload, type=_Message)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadInput(f"message of the {self._name}: {error}") from error

    def _answer(self, message: _Message, fds: list[int]) -> None:
        future = self._waiting.get(message.id)
        if future is not None and not future.done():
            if bytes(message.error):
                future.set_result(({"error": self._plain(message.error)}, fds))
            else:
                future.set_result(({"result": self._plain(message.result)}, fds))
        else:
            for fd in fds:
                os.close(fd)

    def _dispatch_all(self, several: list[msgspec.Raw]) -> None:
        with self._turn:
            for raw in several:
                if not self.closed.is_set():
                    self._dispatch(memoryview(raw), inner=True)

    def _answer_callback(self, message: _Message, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        kind, answered = self._callbacks.pop(message.id)
        if bytes(message.error):
            answered(None, error_from_wire(self._plain(message.error)))
            return
        try:
            result = msgspec.msgpack.decode(message.result, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            answered(None, Unreadable(f"the {self._name} answered with something else than was asked for: {error}"))
            return
        answered(result, None)

    def _begin(self, number: int, name: str, params: Any, fds: list[int]) -> None:
        task = asyncio.create_task(self._serve(number, name, params, fds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if number:
            self._serving[number] = task
            task.add_done_callback(lambda _: self._serving.pop(number, None))

    async def _serve(self, number: int, name: str, params: Any, fds: list[int]) -> None:
        try:
            method = self._methods.get(name)
            if method is None:
                for fd in fds:
                    os.close(fd)
                raise MfError(f"the {self._name} was asked for {name!r}, which this end doesn't serve")
            reply = {"id": number, "result": await method(params, fds)}
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
        gone = ChannelClosed(f"the {self._name} is gone")
        while self._outbox:
            self._outbox.popleft().end(gone)
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        callbacks, self._callbacks = self._callbacks, {}
        for _kind, answered in callbacks.values():
            answered(None, gone)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelClosed(f"the {self._name} is gone"))
