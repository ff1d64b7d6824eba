"""Stages loaded in the worker: built on demand, shared by sessions, let go least recently used when room is needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from node.assemble import GroupBytes
from node.engines import Engines
from node.locate import Located
from node.model_cost import StageCost
from node.waiting_line import NoRoomNow, WaitingLine
from node.worker import Worker
from protocol import limits
from protocol.errors import BadInput, Busy, MfError, Unavailable
from protocol.ids import model_text
from protocol.layout import check_runnable, layer_count, small_files, stage_groups, text_files
from protocol.manifest import Manifest
from runtime.engine_choice import Choice
from runtime.interface import LoadStage, LoadText, OpenSequence, StageLoaded, TensorPlace, TextLoaded, Usage
from runtime.kv_pool import MAX_SEQUENCES

log = logging.getLogger(__name__)
PREPARE_MOST = 512 * limits.MIB
"""Bytes of a stage that is loaded ahead of its use."""
SUSPECT = 60.0
"""Seconds since llama.cpp ran a model within which a fault of the worker is laid to it."""
AT_ONCE = 4
"""Groups assembled side by side."""


@dataclass
class LoadedStage:
    """`key` names it to the worker; `bytes` of weights; `goes_back`: whether sessions can drop positions; `users` sessions on it now;
    `timings` of its making, seconds; `checked` what its self-test says that it did. `engine` torch|llama and `why`; `model` and `precision`
    as asked."""

    key: str
    bytes: int
    goes_back: bool = False
    engine: str = "torch"
    why: str = ""
    model: str = ""
    precision: str = ""
    users: int = 0
    used_at: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    checked: str = ""


class Groups(Protocol):
    """Where groups come from: an `Assembler`, or the cache before it."""

    async def group(self, located: Located, group: int) -> GroupBytes: ...


Used = Callable[[Located, list[int]], None]
"""Told which groups a session uses that are loaded already."""


class StageRoom:
    """All that is loaded in this node's worker. `memory` is the owner's bound in bytes."""

    def __init__(
        self,
        worker: Worker,
        assembler: Groups,
        memory: int,
        used: Used = lambda located, groups: None,
        engines: Engines | None = None,
    ) -> None:
        self._worker = worker
        self._engines = engines or Engines()
        self._used = used
        self._assembler = assembler
        self.memory = memory
        self._stages: dict[str, LoadedStage] = {}
        self._texts: dict[str, TextLoaded] = {}
        self._reserved: dict[str, int] = {}
        self.line = WaitingLine(time.monotonic)
        self._lock = asyncio.Lock()
        self._text_lock = asyncio.Lock()
        self._generation = worker.generation

    def loaded(self) -> list[LoadedStage]:
        return list(self._stages.values())

    def engine_usage(self) -> Usage | None:
        """What the worker told of itself last, None while it doesn't run."""
        return self._worker.figures if self._worker.running else None

    def free(self) -> int:
        """Bytes that could be had for a new stage: what running sessions don't hold."""
        busy = sum(stage.bytes for stage in self._stages.values() if stage.users)
        return max(0, self.memory - busy - sum(self._reserved.values()))

    def holds(self, located: Located, first: int, end: int, precision: str) -> bool:
        """Whether this stage is loaded now."""
        alive = self._worker.running and self._worker.generation == self._generation
        return alive and stage_key(located, first, end, precision) in self._stages

    def engine(self, located: Located, first: int, end: int, precision: str, tokens_max: int) -> Choice:
        """Which a session would run on now, and why."""
        kv = self._kv_bytes(located.manifest, first, end, tokens_max, precision)
        key, choice = self._choice(located, first, end, precision, "generate", kv)
        held = self._stages.get(key) if self.holds(located, first, end, precision) else None
        return choice if held is None else Choice(held.engine, held.why)

    async def text(self, located: Located) -> TextLoaded:
        """The model's tokenizer and template in the worker."""
        check_runnable(located.manifest)
        model = model_text(located.model)
        async with self._text_lock:
            if self._worker.running and self._worker.generation == self._generation and model in self._texts:
                return self._texts[model]
            _up, files = await asyncio.gather(self._worker_up(), self._text_files(located))
            if model not in self._texts:
                self._texts[model] = await self._worker.load_text(LoadText(model=model, files=files))
            return self._texts[model]

    @asynccontextmanager
    async def reply(self, located: Located, precision: str, session: str, tokens_max: int) -> AsyncIterator[LoadedStage]:
        """The whole model, loaded, and room promised for a reply that the worker makes by itself; it waits in line for room.

        `Busy` when too many wait, or after too long.
        """
        check_runnable(located.manifest)
        layers = layer_count(located.manifest)
        kv = self._kv_bytes(located.manifest, 0, layers, tokens_max, precision)

        async def attempt() -> LoadedStage:
            async with self._lock:
                stage = await self._stage_now(located, layers, precision, kv)
                stage.users += 1
                self._reserved[session] = kv
                return stage

        stage = await self.line.enter("", attempt)
        try:
            yield stage
        finally:
            stage.users -= 1
            stage.used_at = time.monotonic()
            self._reserved.pop(session, None)
            self.line.freed()

    async def _stage_now(self, located: Located, layers: int, precision: str, kv: int) -> LoadedStage:
        if len(self._reserved) >= MAX_SEQUENCES:
            raise NoRoomNow
        try:
            return await self._stage(located, 0, layers, precision, kv)
        except Unavailable as error:
            if "needed" in error.details and self._reserved:
                raise NoRoomNow from error
            raise

    @asynccontextmanager
    async def sequence(self, located: Located, first: int, end: int, precision: str, opening: OpenSequence) -> AsyncIterator[LoadedStage]:
        """The stage, loaded, with room for one session on it; both are given back on leaving."""
        check_runnable(located.manifest)
        kv = self._kv_bytes(located.manifest, first, end, opening.tokens_max, precision)
        async with self._lock:
            stage = await self._stage(located, first, end, precision, kv)
            stage.users += 1
            self._reserved[opening.session] = kv
        try:
            await self._worker.open_sequence(stage.key, opening.session, opening.tokens_max, opening.sampling, opening.reply)
            yield stage
        finally:
            stage.users -= 1
            stage.used_at = time.monotonic()
            self._reserved.pop(opening.session, None)
            self.line.freed()
            await self._close(opening.session)

    async def prepare(self, located: Located, first: int, end: int, precision: str) -> dict[str, float]:
        """Loads a stage ahead of its use, into room that nothing else takes; its timings. `Busy` when others would have to go for it."""
        check_runnable(located.manifest)
        async with self._lock:
            needed = StageCost(located.manifest, precision).total(first, end, 0)
            taken = sum(stage.bytes for stage in self._stages.values()) + sum(self._reserved.values())
            if stage_key(located, first, end, precision) not in self._stages and needed > min(self.memory - taken, PREPARE_MOST):
                raise Busy(f"{needed} bytes are too much for a stage that may never be used")
            stage = await self._stage(located, first, end, precision, 0)
            stage.used_at = time.monotonic()
            return dict(stage.timings)

    @asynccontextmanager
    async def encoder(self, located: Located, task: str, precision: str) -> AsyncIterator[LoadedStage]:
        """The whole model, loaded to embed or classify; it isn't let go before leaving."""
        async with self._lock:
            stage = await self._stage(located, 0, layer_count(located.manifest), precision, 0, task)
            stage.users += 1
        try:
            yield stage
        finally:
            stage.users -= 1
            stage.used_at = time.monotonic()

    def _kv_bytes(self, manifest: Manifest, first: int, end: int, tokens_max: int, precision: str) -> int:
        cost = StageCost(manifest, precision)
        return cost.total(first, end, tokens_max) - cost.total(first, end, 0)

    def _choice(self, located: Located, first: int, end: int, precision: str, task: str, kv: int) -> tuple[str, Choice]:
        """The stage that a session is for, by its key, and the engine it is to be loaded into."""
        key = stage_key(located, first, end, precision, task)
        needed = StageCost(located.manifest, precision).total(first, end, 0)
        held = self._stages.get(key)
        others = held.users if held is not None and held.engine == "llama" else 0
        choice = self._engines.choose(located, precision, task=task, others=others, roomy=needed + 2 * kv <= self.memory)
        if not others or choice.engine == "llama":
            return key, choice
        beside = f"{key}+torch"
        spare = self.memory - sum(stage.bytes for stage in self._stages.values()) - sum(self._reserved.values())
        return (beside, choice) if beside in self._stages or needed + kv <= spare else (key, choice)

    async def _stage(self, located: Located, first: int, end: int, precision: str, kv: int, task: str = "generate") -> LoadedStage:
        await self._worker_up()
        key, choice = self._choice(located, first, end, precision, task, kv)
        if key in self._stages:
            self._stages[key].timings = {}
            self._used(located, stage_groups(located.manifest, first, end))
            await self._make_room(kv, keep=key)
            return self._stages[key]
        needed = StageCost(located.manifest, precision).total(first, end, 0)
        await self._make_room(needed + kv)
        started = time.monotonic()
        numbers = stage_groups(located.manifest, first, end)
        groups = await self._assemble(located, numbers)
        assembled = time.monotonic()
        try:
            places, lengths = tensor_places(located.manifest, numbers), [group.length for group in groups]
            load = LoadStage(
                stage=key,
                model=model_text(located.model),
                first=first,
                end=end,
                layers=layer_count(located.manifest),
                tensors=places,
                lengths=lengths,
                precision=precision,
                task=task,
                engine=self._engines.asked if choice.engine == "llama" else "torch",
            )
            await self.text(located)
            loaded = await self._load(located, load, [group.fd for group in groups])
        finally:
            for group in groups:
                group.close()
        timings = {"assemble": assembled - started, "load": time.monotonic() - assembled}
        stage = LoadedStage(key, loaded.bytes, loaded.goes_back, timings=timings, model=load.model, precision=precision)
        stage.engine, stage.why = loaded.engine, choice.why if choice.engine == "torch" else loaded.why
        stage.checked = loaded.self_test
        self._stages[key] = stage
        fields = {"model": load.model, "first": first, "end": end, "bytes": loaded.bytes, "engine": stage.engine, "why": stage.why}
        log.info("stage loaded", extra={"event": "stage_loaded", "fields": fields})
        return stage

    async def _load(self, located: Located, load: LoadStage, fds: list[int]) -> StageLoaded:
        """By torch where llama.cpp took the worker down; what else was loaded is gone then too."""
        try:
            return await self._worker.load_stage(load, fds)
        except Unavailable:
            if load.engine == "torch" or self._worker.running or not self._worker.killed:
                raise
            self._engines.crashed(load.model, load.precision, self._worker.ended)
        await self._worker_up()
        await self.text(located)
        return await self._worker.load_stage(msgspec.structs.replace(load, engine="torch"), fds)

    async def _make_room(self, needed: int, keep: str | None = None) -> None:
        """Lets idle stages go, the longest unused first, until `needed` bytes fit."""

        def used() -> int:
            return sum(stage.bytes for stage in self._stages.values()) + sum(self._reserved.values())

        idle = sorted((stage for stage in self._stages.values() if not stage.users and stage.key != keep), key=lambda stage: stage.used_at)
        free = max(0, self.memory - used() + sum(stage.bytes for stage in idle))
        if needed > free:
            raise Unavailable(
                f"this stage takes {needed} bytes, {free} of {self.memory} are free",
                hint="raise --max-memory or wait for running sessions",
                details={"needed": needed, "free": free},
            )
        while used() + needed > self.memory and idle:
            stage = idle.pop(0)
            self._stages.pop(stage.key, None)
            await self._worker.unload(stage.key)

    async def _assemble(self, located: Located, numbers: list[int]) -> list[GroupBytes]:
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> GroupBytes:
            async with limit:
                return await self._assembler.group(located, number)

        tasks = [asyncio.create_task(one(number)) for number in numbers]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(done, GroupBytes):
                    done.close()
            raise

    async def _text_files(self, located: Located) -> dict[str, bytes]:
        wanted = small_files(located.manifest, text_files(located.manifest))
        if "config.json" not in wanted:
            raise BadInput(f"{model_text(located.model)} has no config.json: it can be fetched, not run")
        files: dict[str, bytes] = {}
        groups: dict[int, bytes] = {}
        for name, places in wanted.items():
            for place in places:
                if place.group not in groups:
                    with closing(await self._assembler.group(located, place.group)) as group:
                        groups[place.group] = group.read()
            files[name] = b"".join(groups[place.group][place.at : place.at + place.length] for place in places)
        return files

    async def _close(self, session: str) -> None:
        try:
            await self._worker.close_sequence(session)
        except MfError as error:
            log.debug("a sequence wasn't closed: %s", error)

    async def _worker_up(self) -> None:
        """Starts the worker; in a new life nothing is loaded any more."""
        await self._worker.start()
        if self._worker.generation != self._generation:
            self._generation = self._worker.generation
            for stage in self._stages.values() if self._worker.crashed else ():
                if stage.engine == "llama" and (stage.users or time.monotonic() - stage.used_at < SUSPECT):
                    self._engines.crashed(stage.model, stage.precision, self._worker.ended)
            self._stages.clear()
            self._texts.clear()


def stage_key(located: Located, first: int, end: int, precision: str, task: str = "generate") -> str:
    """What the worker knows the stage by."""
    return f"{model_text(located.model)}[{first}:{end}]{precision}" + ("" if task == "generate" else task)


def tensor_places(manifest: Manifest, numbers: list[int]) -> list[TensorPlace]:
    """Where each tensor of these groups lies, `group` indexing `numbers`."""
    index = {number: at for at, number in enumerate(numbers)}
    return [
        TensorPlace(
            name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, group=index[cut.group], at=cut.at, length=cut.length, part=part
        )
        for tensor in manifest.tensors
        for part, cut in enumerate(tensor.cuts)
        if cut.group in index
    ]
