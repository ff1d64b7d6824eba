"""The worker's end of the node's channel: the same wire as the node's, read and answered by one thread.

A message is a 4-byte big-endian length and a msgpack map; descriptors come beside it by SCM_RIGHTS in
order, and "fds" counts those that are a message's own. Messages that came together, as one with "several", are taken together: what they
ask for is in one pass. What a pass gives goes together too: each message by itself would wake the node for one session's step.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from types import TracebackType
from typing import Annotated, Any

import msgspec

from protocol import limits
from protocol.descriptors import descriptors, room_for
from protocol.errors import BadInput, MfError

_MAX_MESSAGE = 128 * limits.MIB
_RECEIVE = 256 * limits.KIB
_MAX_FDS = 253
"""The kernel's own bound for one SCM_RIGHTS message."""
_BESIDE = room_for(_MAX_FDS)


_TOGETHER = 256
"""Messages in one."""


class _Message(msgspec.Struct):
    id: int = 0
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"\xc0")
    fds: int = 0
    cancel: bool = False
    several: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_TOGETHER)] = []


_DECODER = msgspec.msgpack.Decoder(_Message)


class Request(msgspec.Struct, frozen=True):
    """`number` 0 wants no answer; `params` are still packed; `fds` are the method's to close. `cancel`: nobody waits for the answer to
    request `number` any more."""

    number: int
    method: str
    params: msgspec.Raw
    fds: list[int]
    cancel: bool = False


class Together:
    """While one pass is computed, or messages that came together are taken."""

    def __init__(self, channel: WorkerChannel) -> None:
        self._channel = channel

    def __enter__(self) -> None:
        self._channel.keep()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.send_kept()


class WorkerChannel:
    """Takes requests one after the other, sends results or errors."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer, self._room = bytearray(), bytearray(_RECEIVE)
        self._fds: list[int] = []
        self._kept: list[dict[str, Any]] | None = None

    def receive(self) -> list[Request]:
        """The next request, or those that came together; none when the node has gone. `BadInput` when the bytes aren't a message."""
        payload = self._message()
        if payload is None:
            return []
        message = _message(payload)
        return [self._request(_message(raw)) for raw in message.several] or [self._request(message)]

    def _request(self, message: _Message) -> Request:
        count = max(0, message.fds)
        fds, self._fds = self._fds[:count], self._fds[count:]
        return Request(message.id, message.method, message.params, fds, message.cancel)

    def together(self) -> Together:
        """`with` it: what is sent meanwhile goes as one message, or a few, at the end."""
        return Together(self)

    def keep(self) -> None:
        self._kept = []

    def send_kept(self) -> None:
        kept, self._kept = self._kept or [], None
        for at in range(0, len(kept), _TOGETHER):
            some = kept[at : at + _TOGETHER]
            self._send(some[0] if len(some) == 1 else {"several": some})

    def waiting(self) -> bool:
        """Whether `receive` would find something (the channel's end too)."""
        if len(self._buffer) >= 4 and len(self._buffer) >= 4 + int.from_bytes(self._buffer[:4], "big"):
            return True
        return bool(select.select([self._sock], [], [], 0)[0])

    def tell(self, method: str, params: Any) -> None:
        """A note that wants no answer."""
        self._send({"id": 0, "method": method, "params": params})

    def answer(self, number: int, result: Any) -> None:
        self._send({"id": number, "result": result})

    def refuse(self, number: int, error: MfError) -> None:
        self._send({"id": number, "error": error.to_wire()})

    def _message(self) -> bytes | None:
        while True:
            if len(self._buffer) >= 4:
                end = 4 + int.from_bytes(self._buffer[:4], "big")
                if end > 4 + _MAX_MESSAGE:
                    return None
                if len(self._buffer) >= end:
                    payload = bytes(memoryview(self._buffer)[4:end])
                    del self._buffer[:end]
                    return payload
            data = self._read()
            if not data:
                return None
            if not self._buffer and len(data) >= 4 and len(data) == 4 + int.from_bytes(data[:4], "big"):
                return bytes(data[4:])  # the common case: one whole message
            self._buffer += data

    def _read(self) -> memoryview:
        """What is there, waiting for it, good until the next `_read`; nothing once the node has gone."""
        try:
            count, beside, _flags, _address = self._sock.recvmsg_into((self._room,), _BESIDE)
        except OSError:
            return memoryview(b"")
        if beside:
            self._fds += descriptors(beside)
        return memoryview(self._room)[:count]

    def _send(self, message: dict[str, Any]) -> None:
        if self._kept is not None:
            self._kept.append(message)
            return
        payload = msgspec.msgpack.encode(message)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the node is gone, which `receive` finds too
            self._sock.sendall(len(payload).to_bytes(4, "big") + payload)


def _message(payload: bytes | msgspec.Raw) -> _Message:
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"message of the node: {error}") from error


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
