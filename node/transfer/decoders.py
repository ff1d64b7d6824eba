"""The processes that decode: started when first needed, as many as the machine bears, a new one where one died."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from erasure.cipher import PUBLIC_SECRET
from node.channel import Channel
from node.transfer.decoding import Lent
from node.transfer.finishing import to_the_end
from node.transfer.jobs import BeginDecoding, DecodeWindow, DecodingRef, FetchGroup
from node.transfer.slots import Slot, Slots
from protocol.errors import MfError

START_WITHIN = 10.0
WINDOW_WITHIN = 60.0
"""A window is decoded in milliseconds and written to the disk's cache; a disk may take its time."""

MOST = 4
log = logging.getLogger(__name__)


class _Process:
    """One decoding process and its end of the channel."""

    def __init__(self, channel: Channel, process: asyncio.subprocess.Process) -> None:
        self.channel, self.process = channel, process
        self.jobs = 0

    async def stop(self) -> None:
        await self.channel.close()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class ProcessDecoding:
    """A `Decoding` in another process."""

    def __init__(self, process: _Process, job: int) -> None:
        self._process, self._job = process, job
        self._lent = Lent()
        self._ended = False

    async def window(self, window: int, got: Mapping[int, Slot], spare: list[Slot]) -> list[Slot]:
        self._lent.add(got, spare)
        asked = DecodeWindow(
            job=self._job,
            window=window,
            got=[(shard, slot.number) for shard, slot in got.items()],
            spare=[slot.number for slot in spare],
        )
        return self._lent.back(await self._call("window", asked))

    async def end(self) -> list[Slot]:
        """Where the process is gone, nobody writes to the slots any more: all of them are free."""
        if self._ended:
            return []
        self._ended = True
        self._process.jobs -= 1
        try:
            await self._call("end", DecodingRef(job=self._job))
        except MfError as error:
            log.info("a decoding didn't end well: %s", error)
            if not self._process.channel.closed.is_set():
                # It may still be writing: its slots are never used again, its files end with it.
                await self._process.stop()
        return self._lent.all_back()

    async def _call(self, method: str, params: object) -> list[int]:
        call = self._process.channel.call(method, params, list[int], timeout=WINDOW_WITHIN)
        return await to_the_end(asyncio.ensure_future(call))


class Decoders:
    """`environment` gives what a child process may know."""

    def __init__(self, slots: Slots, environment: Callable[[], dict[str, str]], log_form: str) -> None:
        self._slots, self._environment, self._log_form = slots, environment, log_form
        self._most = max(1, min(MOST, (os.cpu_count() or 2) // 2))
        self._processes: list[_Process] = []
        self._starting = asyncio.Lock()
        self._numbers = count(1)

    async def begin(self, job: FetchGroup, fds: Sequence[int]) -> ProcessDecoding:
        """`fds` stay the caller's; the process has its own of the same files until `end`."""
        process = await self._idlest()
        number = next(self._numbers)
        begin = BeginDecoding(job=number, envelope=job.envelope, secret=job.secret or PUBLIC_SECRET, offset=job.offset, spans=job.spans)
        begin.done, begin.mark = job.done, job.mark
        process.jobs += 1
        try:
            await process.channel.call("begin", begin, type(None), fds=fds, timeout=START_WITHIN)
        except BaseException:
            process.jobs -= 1
            raise
        return ProcessDecoding(process, number)

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes))
        self._processes.clear()

    async def _idlest(self) -> _Process:
        async with self._starting:
            gone = [process for process in self._processes if process.channel.closed.is_set()]
            for process in gone:
                self._processes.remove(process)
                await process.stop()
            idle = min(self._processes, key=lambda process: process.jobs, default=None)
            if idle is None or (idle.jobs and len(self._processes) < self._most):
                idle = await self._start()
                self._processes.append(idle)
            return idle

    async def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "node.transfer.decoding_process", str(theirs.fileno()), self._log_form,
                stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=self._environment(),
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        started = _Process(Channel(ours, {}, "decoding process"), process)
        started.channel.start()
        try:
            await started.channel.call("configure", None, type(None), fds=[self._slots.memory().fd], timeout=START_WITHIN)
        except BaseException:
            await started.stop()
            raise
        return started
