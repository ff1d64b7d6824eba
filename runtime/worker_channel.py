"""The worker's end of the node's channel: the same wire as the node's, read and answered by one thread.

A message is a 4-byte big-endian length and a canonical msgpack map; descriptors come beside it by SCM_RIGHTS in
order, and "fds" counts those that are a message's own.
"""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass
from typing import Any

import msgspec

from protocol import limits
from protocol.errors import MfError
from protocol.framing import unpack_plain

_MAX_MESSAGE = 128 * limits.MIB
_RECEIVE = limits.MIB
_MAX_FDS = 253
"""The kernel's own bound for one SCM_RIGHTS message."""


@dataclass(frozen=True)
class Request:
    """`number` 0 wants no answer; `fds` are the method's to close. `cancel`: nobody waits for the answer to request `number` any more."""

    number: int
    method: str
    params: Any
    fds: list[int]
    cancel: bool = False


class WorkerChannel:
    """Takes requests one after the other, sends results or errors."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds: list[int] = []

    def receive(self) -> Request | None:
        """The next request; None when the node has gone. `BadInput` when the bytes aren't a message."""
        payload = self._message()
        if payload is None:
            return None
        message = unpack_plain(payload, "message of the node", _MAX_MESSAGE)
        count = int(message.get("fds", 0))
        fds, self._fds = self._fds[:count], self._fds[count:]
        cancel = bool(message.get("cancel", False))
        return Request(int(message.get("id", 0)), str(message.get("method", "")), message.get("params"), fds, cancel)

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
            if not self._fill():
                return None

    def _fill(self) -> bool:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._sock, _RECEIVE, _MAX_FDS)
        except OSError:
            return False
        self._fds += fds
        self._buffer += data
        return bool(data)

    def _send(self, message: dict[str, Any]) -> None:
        payload = msgspec.msgpack.encode(message)
        self._sock.sendall(len(payload).to_bytes(4, "big") + payload)


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
