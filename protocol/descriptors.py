"""Descriptors that a Unix socket brought beside a message's bytes, at either end of a channel between a node's processes."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Sequence


def room_for(count: int) -> int:
    """Bytes of ancillary data in which so many descriptors come."""
    return socket.CMSG_LEN(count * array("i").itemsize)


def descriptors(beside: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Those in what `recvmsg` gave beside the bytes, in their order."""
    found = array("i")
    for level, kind, data in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
