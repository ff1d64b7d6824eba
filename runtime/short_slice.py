"""Asks the kernel to run this thread soon after it wakes, in exchange for shorter turns (Linux 6.12 and newer; elsewhere nothing happens).

A step of a reply wakes four processes one after the other, each for a fraction of a millisecond. Where the cores are busy with a transfer,
each of them would wait for the end of somebody's turn, about 3 ms. A thread that asks for short turns goes first when it wakes. It
gets no more of the processor for it: its priority stays. What it doesn't help against is its own past: a thread that has had more than
its share waits for the others', and whoever runs then does so until the clock's next tick, 4 ms at 250 a second (seen in one hop of a
hundred while two nodes on two cores fetch; `node/transfer/give_way.py` makes it rarer). Nor does it count, or any
priority, between processes of different sessions where the kernel groups by them ("autogroup").
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

_NUMBER = {"x86_64": 314, "aarch64": 274, "arm64": 274}
_SIZE = 48
SLICE = 100_000
"""Nanoseconds: the least that the kernel takes."""


def ask_short_slice(nice: int = 0) -> bool:
    """For the calling thread and those it starts from now on; whether the kernel took it. `nice` is set along, as `os.nice` counts."""
    number = _NUMBER.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    attributes = struct.pack("<IIQiIQQQ", _SIZE, 0, 0, nice, 0, SLICE, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, _SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(number, 0, buffer, 0) == 0)
