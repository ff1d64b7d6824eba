"""A process that decodes windows into files: `python -m node.transfer.decoding_process FD [text|json]`, FD its end of a socketpair
with the transfer process, as long as which it lives.

    configure()                       + the slots' memory
    begin(job, envelope, secret, …)   + the files
    window(job, number, got, spare)   -> slots free again
    end(job)                          -> slots still held

One thread, one window at a time: there is nothing here that could wait.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from node.channel import Channel, Method
from node.logs import configure_logs
from node.transfer.dying import die_with_parent
from node.transfer.fetch_assemble import Assembler, Workroom
from node.transfer.fetch_board import Shape
from node.transfer.jobs import BeginDecoding, DecodeWindow, DecodingRef, converted
from node.transfer.sink import Sink
from node.transfer.slots import MOST, SharedMemory, Slot
from protocol.encoding import encoding_id, parse_encoding
from protocol.errors import BadInput

NICE = 5
"""On top of the transfer process', whose child this is."""


@dataclass
class _Job:
    assembler: Assembler
    fds: list[int]


class DecodingDesk:
    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._workroom = Workroom()
        self._memory: SharedMemory | None = None

    def methods(self) -> dict[str, Method]:
        return {
            "configure": self._configure,
            "begin": self._begin,
            "window": self._without_files(self._window),
            "end": self._without_files(self._end),
        }

    def _without_files(self, method: Callable[[Any], list[int]]) -> Method:
        async def serve(params: Any, fds: list[int]) -> Any:
            _close(fds)
            return method(params)

        return serve

    async def _configure(self, params: Any, fds: list[int]) -> None:
        if len(fds) != 1:
            _close(fds)
            raise BadInput(f"decoding: one descriptor of memory is wanted, {len(fds)} came")
        self._memory = SharedMemory(fds[0])

    async def _begin(self, params: Any, fds: list[int]) -> None:
        try:
            begin = converted(params, BeginDecoding)
            _, record = parse_encoding(begin.envelope)
            sink = Sink.whole(fds[0], begin.offset) if begin.spans is None and len(fds) == 1 else Sink.marked(begin, fds)
            assembler = Assembler(record, Shape.of(encoding_id(begin.envelope), record), sink, self._workroom, begin.secret, begin.done)
        except BaseException:
            _close(fds)
            raise
        self._jobs[begin.job] = _Job(assembler, fds)

    def _window(self, params: Any) -> list[int]:
        asked = converted(params, DecodeWindow)
        got = {shard: self._slot(number) for shard, number in asked.got}
        free = self._job(asked.job).assembler.window(asked.window, got, [self._slot(number) for number in asked.spare])
        return [slot.number for slot in free]

    def _end(self, params: Any) -> list[int]:
        job = self._jobs.pop(converted(params, DecodingRef).job, None)
        if job is None:
            return []
        _close(job.fds)
        return [slot.number for slot in job.assembler.end()]

    def _job(self, number: int) -> _Job:
        job = self._jobs.get(number)
        if job is None:
            raise BadInput(f"decoding: there is no job {number}")
        return job

    def _slot(self, number: int) -> Slot:
        if self._memory is None or not 0 <= number < MOST:
            raise BadInput(f"decoding: there is no slot {number}")
        return self._memory.slot(number)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def serve(sock: socket.socket) -> None:
    channel = Channel(sock, DecodingDesk().methods(), "transfer process")
    channel.start()
    await channel.closed.wait()


def main() -> None:
    faulthandler.enable(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    os.nice(NICE)
    configure_logs(sys.argv[2] if len(sys.argv) > 2 else "text")
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
