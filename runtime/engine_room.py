"""Whose memory is what: the weights, one pass's activations, and what is left for sequences.

Runners that reserve in greater pieces than sequences need (`Reserving`) are charged with what they really take: room that lies idle too.
What is taken without being used goes before anybody is told that there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from protocol.errors import Busy
from runtime.kv_pool import KVPool
from runtime.loaded import Loaded, Price
from runtime.model_runner import ModelRunner, Reserving


class EngineRoom:
    """Of `memory` bytes for all; `stages`, those being loaded (`coming`) and `pool` are the engine's, and change under it."""

    def __init__(self, memory: int, stages: Mapping[str, Loaded], coming: Mapping[str, Price], pool: KVPool) -> None:
        self._memory = memory
        self._coming = coming
        self._stages = stages
        self._pool = pool

    @property
    def activations(self) -> int:
        """Those of one pass, since passes run one after the other."""
        return max((price.activations for price in self._prices()), default=0)

    def _prices(self) -> Iterator[Price]:
        yield from (loaded.price for loaded in self._stages.values())
        yield from self._coming.values()

    @property
    def for_sequences(self) -> int:
        return self._memory - self.activations - sum(price.weights for price in self._prices()) - self.reserved

    def admit(self, asked: int, what: str) -> None:
        if asked > self.for_sequences - self._pool.used:
            self._give_back()
        free = self.for_sequences - self._pool.used
        if asked > free:
            raise Busy(
                f"no room for {what}: {asked / 1e6:.1f} MB needed, {max(free, 0) / 1e6:.1f} MB of {self._memory / 1e6:.0f} MB free",
                hint="fewer layers, a shorter context, or a greater --max-memory would do",
            )
        self._pool.shrink(free - asked)

    def for_sequence(self, runner: ModelRunner, positions: int) -> tuple[int, int]:
        """What a sequence of so many positions takes, and of how much: running ones' share included."""
        if not isinstance(runner, Reserving):
            return runner.fixed_bytes + positions * runner.token_bytes, self.for_sequences
        if self._to_seat(runner, positions) > self.for_sequences - self._pool.used:
            self._give_back()
        size = runner.place_bytes(positions)
        # A free place is paid for already, a new one costs what its context grows by.
        return size, self.for_sequences - self._to_seat(runner, positions) + size

    def _to_seat(self, runner: Reserving, positions: int) -> int:
        """Bytes beyond those taken. What the first of all contexts computes in is the pass's activations, those of others come on top."""
        more = runner.bytes_to_seat(positions)
        others = any(one.scratch for _name, one in self._reserving())
        return more + (runner.scratch_each if more and others else 0)

    def _give_back(self) -> None:
        """What is taken without being used goes."""
        for name, runner in self._reserving():
            self._pool.forget_stage(name)
            runner.give_back()

    def _reserving(self) -> list[tuple[str, Reserving]]:
        found = list[tuple[str, Reserving]]()
        for name, loaded in self._stages.items():
            runner: object = loaded.runner
            if isinstance(runner, Reserving):
                found.append((name, runner))
        return found

    @property
    def reserved(self) -> int:
        """Bytes that are taken beyond what sequences were promised, and what contexts but the greatest compute in."""
        runners = self._reserving()
        scratch = [size for _name, runner in runners for size in runner.scratch]
        spare = sum(max(0, runner.reserved_bytes - self._pool.of(name)[0]) for name, runner in runners)
        return spare + sum(scratch) - max(scratch, default=0)
