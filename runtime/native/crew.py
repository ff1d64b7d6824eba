"""The threads of a process that compute its passes, and the memory they meet in (`runtime/native/team.py` says how)."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Sequence

import torch

from runtime.native import fields as f
from runtime.native.company import Company
from runtime.native.kernels import Run, found

Fields = ctypes.Array[ctypes.c_int64]


def fields(count: int) -> Fields:
    """Noughts, at an address that is a multiple of 8."""
    return (ctypes.c_int64 * count)()


def put(room: Fields, at: int, values: Sequence[int]) -> None:
    """Consecutive fields from `at` on."""
    room[at : at + len(values)] = values  # type: ignore[call-overload]  # any sequence does


def address_of(room: Fields) -> int:
    return ctypes.addressof(room)


class Pass:
    """One of the ring: `given` for its fields, what threads share beside it."""

    def __init__(self, threads: int) -> None:
        self.given = fields(f.PASS_FIELDS)
        self._room = fields(f.LINE * (f.TAKEN + threads + 1))
        start = address_of(self._room)
        self._skipped = -start % 64 // 8
        self.given[f.COMMON] = start + 8 * self._skipped
        self.plan: Fields | None = None
        """Of its stage: a helper that is late reads it on its way out, when the stage itself may be gone."""
        self.address = address_of(self.given)

    @property
    def left(self) -> bool:
        """Whether no helper is inside."""
        return self._room[self._skipped + f.LINE * f.INSIDE] == 0


class Crew:
    """Whoever calls `lead` and `threads` - 1 helpers, which start now and end with the process."""

    def __init__(self, run: Run, threads: int) -> None:
        self.threads, self._run = threads, run
        libc = ctypes.CDLL(None)
        calls = {where: ctypes.cast(getattr(libc, name), ctypes.c_void_p).value for where, name in _CALLS.items()}
        self._ring = [Pass(threads) for _ in range(f.RING)]
        self._buffer, ring = fields(1), fields(f.RING)
        self._buffer[0] = 1
        for number, one in enumerate(self._ring):
            ring[number] = one.address
        self._all = [fields(f.THREAD_FIELDS + 8) for _ in range(threads)]
        others, self._reads = fields(max(1, threads - 1)), [fields(1) for _ in range(threads)]
        for number, thread in enumerate(self._all):
            thread[f.NUMBER], thread[f.THREADS], thread[f.RING_OF] = number, threads, address_of(ring)
            thread[f.BUFFER] = address_of(self._reads[number]) if number else address_of(self._buffer)
            for where, value in calls.items():
                thread[where] = value or 0
            if number:
                thread[f.DOOR] = os.eventfd(0, os.EFD_CLOEXEC)
                others[number - 1] = address_of(thread)
        self._all[0][f.OTHERS] = address_of(others)
        self._kept = (ring, others, libc)
        self._first, self._company = address_of(self._all[0]), Company()
        self._single = fields(f.THREAD_FIELDS)
        put(self._single, 0, self._all[0][: f.THREAD_FIELDS])
        self._single[f.THREADS] = 1
        self._alone = address_of(self._single)
        self._helpers = [threading.Thread(target=run, args=(address_of(one), 0), daemon=True, name="kernels") for one in self._all[1:]]
        for helper in self._helpers:
            helper.start()

    def next_pass(self) -> Pass:
        """One that nobody is inside of any more."""
        while True:
            for one in self._ring:
                if one.left:
                    return one
            os.sched_yield()

    def lead(self, one: Pass, plan: Fields) -> None:
        """A pass through the stage that `plan` describes, its other fields written already."""
        one.plan, one.given[f.STAGE] = plan, address_of(plan)
        if self.threads == 1:
            self._run(self._alone, one.address)
            return
        kind = one.given[f.STAGE], int(one.given[f.COUNT]).bit_length()
        wanted, own, began = self._company.wanted(kind), time.thread_time(), time.perf_counter()
        self._run(self._first if wanted else self._alone, one.address)
        seconds = time.perf_counter() - began
        if wanted:
            self._company.together(kind, seconds, time.thread_time() - own)
        else:
            self._company.alone(kind, seconds)

    def stop(self) -> None:
        """Helpers end, and then nothing looks at this memory any more; nothing is asked of it after that."""
        for thread in self._all[1:]:
            thread[f.STOP] = 1
            os.eventfd_write(thread[f.DOOR], 1)
        for helper, thread in zip(self._helpers, self._all[1:], strict=True):
            helper.join()
            os.close(thread[f.DOOR])


_CALLS = {f.READ: "read", f.WRITE: "write", f.GIVE_WAY: "sched_yield"}


@functools.cache
def crew() -> Crew | str:
    """This process's, of as many threads as torch has; or why there is none."""
    run = found()
    return run if isinstance(run, str) else Crew(run, torch.get_num_threads())
