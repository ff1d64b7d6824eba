"""The command line's end of the owner's socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.channel import Channel
from node.owner import POINTER, SOCKET
from protocol.errors import BadInput, NotRunning

Event = Callable[[dict[str, Any]], None]


def _address(data_dir: Path) -> str:
    with contextlib.suppress(OSError):
        return os.fsdecode((data_dir / POINTER).read_bytes())
    return os.fspath(data_dir / SOCKET)


def _connect(data_dir: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(_address(data_dir))
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise BadInput(f"the node of {data_dir} belongs to another user") from None
        raise NotRunning(f"no node is running on {data_dir}", hint="start one with `mf-node run`, or name its --data-dir") from None
    return sock


async def call_async(
    data_dir: Path, method: str, params: dict[str, Any], on_event: Event | None = None, timeout: float | None = None
) -> Any:
    """The node's answer to `method`; events go to `on_event` as they come. Cancelling it cancels the node's work.

    Raises `NotRunning`, the node's own error, or `ChannelClosed` when it goes in the middle.
    """

    async def event(value: Any, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if on_event is not None and isinstance(value, dict):
            on_event(value)

    channel = Channel(_connect(data_dir), {"event": event}, "node")
    channel.start()
    try:
        return await channel.call(method, params, Any, timeout=timeout)
    finally:
        await channel.close()


def call(
    data_dir: Path, method: str, params: dict[str, Any] | None = None, on_event: Event | None = None, timeout: float | None = None
) -> Any:
    """`call_async` for a command that does one thing. Ctrl-C raises KeyboardInterrupt after the node was told."""
    return asyncio.run(call_async(data_dir.absolute(), method, params or {}, on_event, timeout))
