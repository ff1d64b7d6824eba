"""Decoding one group's windows, wherever it is done: in a process beside this one (`decoders`), or in a thread.

A thread shares Python's lock with the loop that receives: the two take it from each other several thousand times for 256 MiB, each
time with a switch of context, which costs a fifth of the whole transfer. So a node decodes in processes; the thread is for a
program that has a group's windows and nothing else to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from typing import Protocol

from erasure.cipher import PUBLIC_SECRET
from node.transfer.fetch_assemble import Assembler, Workroom
from node.transfer.fetch_board import Shape
from node.transfer.finishing import to_the_end
from node.transfer.sink import Sink
from node.transfer.slots import Slot
from protocol.encoding import encoding_id, parse_encoding


class Decoding(Protocol):
    """One group. Being cancelled waits for the work under way: slots and descriptors outlive it."""

    async def window(self, window: int, got: Mapping[int, Slot], spare: list[Slot]) -> list[Slot]:
        """Takes the windows in order, the next before those asked for earlier are done: k shards of each, and a slot for each data
        shard missing. The slots free again.

        `BadInput`: it doesn't decode as its signer declared; `StorageFull`.
        """

    async def end(self) -> list[Slot]:
        """The slots still held; safe to repeat, nothing else may follow it."""


class Lent:
    """The slots that a decoding has."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}

    def add(self, got: Mapping[int, Slot], spare: list[Slot]) -> None:
        self._slots |= {slot.number: slot for slot in (*got.values(), *spare)}

    def back(self, numbers: Iterable[int]) -> list[Slot]:
        return [slot for number in numbers if (slot := self._slots.pop(number, None)) is not None]

    def all_back(self) -> list[Slot]:
        return self.back(list(self._slots))


class ThreadDecoding:
    def __init__(self, envelope: bytes, sink: Sink, executor: Executor, secret: bytes = PUBLIC_SECRET, done: int = 0) -> None:
        _, record = parse_encoding(envelope)
        self._assembler = Assembler(record, Shape.of(encoding_id(envelope), record), sink, Workroom(), secret, done)
        self._executor = executor
        self._lent = Lent()
        self._turn = asyncio.Lock()

    async def window(self, window: int, got: Mapping[int, Slot], spare: list[Slot]) -> list[Slot]:
        self._lent.add(got, spare)
        loop = asyncio.get_running_loop()
        async with self._turn:
            free = await to_the_end(loop.run_in_executor(self._executor, self._assembler.window, window, got, spare))
        return self._lent.back(slot.number for slot in free)

    async def end(self) -> list[Slot]:
        self._assembler.end()
        return self._lent.all_back()
