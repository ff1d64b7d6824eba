"""The owner's door: a Unix socket in the data directory that the command line calls the running node through.

Only the same user comes in: the socket is 0600 inside a 0700 directory, and the kernel's word on the other
end's uid (SO_PEERCRED) is checked too. Each connection makes calls over a `Channel`; a call may send events
before its result. A client that leaves cancels what it asked for: Ctrl-C at the shell is the only cancel there is.

A socket's path holds 107 bytes. Where the data directory's is longer, the socket lies in the runtime directory
under a name made from the data directory's path, and `owner.path` in the data directory says where.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from node.channel import Channel, ChannelClosed
from node.data_dir import write_durably
from protocol.errors import BadInput, Conflict
from protocol.ids import digest

Notify = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
OwnerMethod = Callable[[dict[str, Any], Notify], Awaitable[Any]]
"""(params, notify) -> the result, plain values. `notify(event)` sends {"event": …, …} to the caller, in order."""

SOCKET = "owner.sock"
POINTER = "owner.path"
_LONGEST = 100
_MAX_CLIENTS = 32
log = logging.getLogger(__name__)


def socket_path(data_dir: Path) -> Path:
    """Where the node of `data_dir` listens, or would. Short enough for a socket's address."""
    plain = data_dir / SOCKET
    if len(os.fsencode(plain)) <= _LONGEST:
        return plain
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime) if runtime and len(os.fsencode(runtime)) < 60 and os.path.isdir(runtime) else Path(tempfile.gettempdir())
    name = digest(os.fsencode(data_dir.absolute())).hex()[:16]
    return folder / f"mf-{os.getuid()}-{name}" / SOCKET


class OwnerServer:
    """Serves `methods` to this user. `start` binds, `close` ends every call and removes the socket."""

    def __init__(self, data_dir: Path, methods: Mapping[str, OwnerMethod]) -> None:
        self._data_dir = data_dir
        self._methods = methods
        self._path = socket_path(data_dir)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def path(self) -> Path:
        return self._path

    async def start(self) -> None:
        """Binds with mode 0600. The data directory is locked by now, so a socket found there is a leftover."""
        self._listener = self._bind()
        self._accepting = asyncio.create_task(self._accept(self._listener), name="owner socket")

    async def close(self) -> None:
        tasks = [task for task in (self._accepting, *self._clients) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _bind(self) -> socket.socket:
        if self._path.parent != self._data_dir:
            self._make_folder()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(self._path))
            os.chmod(self._path, 0o600)
            listener.listen(_MAX_CLIENTS)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise BadInput(f"the owner's socket {self._path} can't be made: {error.strerror}") from error
        return listener

    def _make_folder(self) -> None:
        folder = self._path.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not folder.is_dir() or folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise Conflict(f"{folder} isn't a private directory of this user", hint="remove it, or use a shorter --data-dir")
        write_durably(self._data_dir / POINTER, os.fsencode(self._path))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid != os.getuid() or len(self._clients) >= _MAX_CLIENTS:
                log.warning("owner's socket: refused uid %d, %d clients", uid, len(self._clients), extra={"event": "owner_refused"})
                connection.close()
                continue
            task = asyncio.create_task(self._serve(connection))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, connection: socket.socket) -> None:
        client = _Client(self._methods)
        channel = Channel(connection, client.methods(), "command line")
        client.channel = channel
        channel.start()
        try:
            await channel.closed.wait()
        finally:
            client.cancel()
            await channel.close()


class _Client:
    """One command line at the other end, and the calls it has running."""

    channel: Channel

    def __init__(self, methods: Mapping[str, OwnerMethod]) -> None:
        self._methods = methods
        self._running: set[asyncio.Task[Any]] = set()

    def methods(self) -> dict[str, Callable[[Any, list[int]], Awaitable[Any]]]:
        return {name: self._method(method) for name, method in self._methods.items()}

    def cancel(self) -> None:
        for task in self._running:
            task.cancel()

    def _method(self, method: OwnerMethod) -> Callable[[Any, list[int]], Awaitable[Any]]:
        async def serve(params: Any, fds: list[int]) -> Any:
            for fd in fds:
                os.close(fd)
            if not isinstance(params, dict):
                raise BadInput("owner's call: params is not a map")
            task = asyncio.ensure_future(method(params, self._notify))
            self._running.add(task)
            try:
                return await task
            finally:
                self._running.discard(task)

        return serve

    async def _notify(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(ChannelClosed):
            await self.channel.notify("event", event)
