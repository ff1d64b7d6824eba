"""Stages loaded in the worker: built on demand, shared by sessions, let go least recently used when room is needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from node.assemble import GroupBytes
from node.engines import Engines
from node.gather import Groups, gather, gather_texts, tensor_places
from node.loaded_stage import LoadedStage, StageHold
from node.locate import Located
from node.model_cost import StageCost
from node.remedies import megabytes
from node.waiting_line import IMPATIENT, PATIENT, Asker, NoRoomNow, WaitingLine
from node.worker import Worker
from protocol import limits
from protocol.errors import Busy, MfError, Unavailable
from protocol.ids import model_text
from protocol.layout import check_runnable, layer_count, stage_groups
from protocol.manifest import Manifest
from runtime.engine_choice import Choice
from runtime.interface import Left, LoadStage, LoadText, OpenSequence, StageLoaded, TextLoaded, Usage
from runtime.kv_pool import MAX_SEQUENCES

log = logging.getLogger(__name__)
PREPARE_MOST = 512 * limits.MIB
"""Bytes of a stage that is loaded ahead of its use."""
UNUSED = 60.0
"""Seconds for which a stage that nobody uses isn't let go for one that may never be used."""
SUSPECT = 60.0
"""Seconds since llama.cpp ran a model within which a fault of the worker is laid to it."""


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
        self._memory = memory
        self._stages: dict[str, LoadedStage] = {}
        self._texts: dict[str, TextLoaded] = {}
        self._reserved: dict[str, int] = {}
        self.lasting: str | None = None
        """Key of the stage that this node tells others it has: it isn't let go to stand by for another."""
        self.line = WaitingLine(time.monotonic)
        self.compiled: Callable[[str], str | None] = lambda key: None
        """What came of compiling a stage's layers; None: nothing yet."""
        self._lock = asyncio.Lock()
        self._load: asyncio.Task[LoadedStage] | None = None
        self._lean: dict[str, str] = {}
        """What comparing stages' lean steps said in earlier lives of the worker: the same weights needn't be compared again."""
        self._text_lock = asyncio.Lock()
        self._generation = worker.generation

    @property
    def memory(self) -> int:
        """Bytes for all stages: what is lent, or less where the worker's device has less."""
        device = self._worker.device
        return self._memory if device is None else min(self._memory, device.memory)

    def loaded(self) -> list[LoadedStage]:
        return list(self._stages.values()) if self._worker.generation == self._generation else []

    def engine_usage(self) -> Usage | None:
        """What the worker told of itself last, None while it doesn't run."""
        return self._worker.figures if self._worker.running else None

    def measured(self, stage: LoadedStage) -> int | None:
        """Bytes that the worker's process has grown by since before this stage was loaded: weights, contexts, what passes take.

        None where it isn't this stage alone that made it grow: others came, went or are in use.
        """
        others = {key: other for key, other in self._stages.items() if other is not stage}
        now = self._worker.memory() if self._stages.get(stage.key) is stage and self.loaded() else None
        if now is None or stage.before is None or others.keys() != stage.beside or any(other.users for other in others.values()):
            return None
        return max(0, now - stage.before) or None

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
        if held is None:
            return choice
        compiled = self.compiled(held.key)
        return Choice(held.engine, held.why if compiled is None else f"{held.why}; {compiled}")

    async def text(self, located: Located) -> TextLoaded:
        """The model's tokenizer and template in the worker."""
        check_runnable(located.manifest)
        model = model_text(located.model)
        async with self._text_lock:
            if self._worker.running and self._worker.generation == self._generation and model in self._texts:
                return self._texts[model]
            _up, files = await asyncio.gather(self._worker_up(), gather_texts(self._assembler, located))
            if model not in self._texts:
                self._texts[model] = await self._worker.load_text(LoadText(model=model, files=files))
            return self._texts[model]

    @asynccontextmanager
    async def reply(
        self, located: Located, precision: str, session: str, tokens_max: int, asker: Asker = PATIENT
    ) -> AsyncIterator[LoadedStage]:
        """The whole model, loaded, and room promised for a reply that the worker makes by itself; it waits in line for room.

        `Busy` when too many wait, or after too long.
        """
        check_runnable(located.manifest)
        layers = layer_count(located.manifest)
        kv = self._kv_bytes(located.manifest, 0, layers, tokens_max, precision)

        async def attempt() -> LoadedStage:
            async with self._alone():
                return self._promise(session, await self._stage_now(located, 0, layers, precision, kv), kv)

        stage = await self.line.enter(asker, attempt)
        try:
            yield stage
        finally:
            self._take_back(session, stage)
            self.line.freed()

    @asynccontextmanager
    async def sequence(
        self, located: Located, first: int, end: int, precision: str, opening: OpenSequence, asker: Asker = IMPATIENT
    ) -> AsyncIterator[StageHold]:
        """The stage, loaded, with room for one session on it; both are given back on leaving.

        Where others have the room the asker waits in line for it, or gets a `Busy`; `Unavailable` where it would never do.
        """
        check_runnable(located.manifest)
        kv = self._kv_bytes(located.manifest, first, end, opening.tokens_max, precision)

        async def attempt() -> StageHold:
            while True:
                async with self._alone():
                    stage = self._promise(opening.session, await self._stage_now(located, first, end, precision, kv), kv)
                try:
                    opened = await self._worker.open_sequence(msgspec.structs.replace(opening, stage=stage.key))
                    hold = StageHold(stage, opened.reused)
                    self._worker.when_ended(hold.fail)
                    return hold
                except BaseException as error:
                    try:
                        await self._close(opening.session)
                    finally:
                        self._take_back(opening.session, stage)
                    if not isinstance(error, Busy):
                        raise
                    async with self._alone():
                        await self._make_way(error, keep=stage.key)

        hold = await self.line.enter(asker, attempt)
        try:
            yield hold
        finally:
            try:
                await self._close(opening.session, hold.left)
            finally:
                self._worker.forget(hold.fail)
                self._take_back(opening.session, hold.stage)
                self.line.freed()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One at a time. A load goes on to its end though its asker left: the worker does it anyway, and the next to ask finds it done."""
        await self._lock.acquire()
        try:
            yield
        finally:
            if self._load is None or self._load.done():
                self._lock.release()
            else:
                self._load.add_done_callback(lambda _load: self._lock.release())

    def _promise(self, session: str, stage: LoadedStage, kv: int) -> LoadedStage:
        stage.users += 1
        self._reserved[session] = kv
        return stage

    def _take_back(self, session: str, stage: LoadedStage) -> None:
        stage.users -= 1
        stage.used_at = time.monotonic()
        self._reserved.pop(session, None)

    def _in_use(self) -> bool:
        """Whether anybody runs here, who will give room back."""
        return bool(self._reserved) or any(stage.users for stage in self._stages.values())

    async def _stage_now(self, located: Located, first: int, end: int, precision: str, kv: int, task: str = "generate") -> LoadedStage:
        """The stage, with `kv` bytes free beside it; `NoRoomNow` while others have them."""
        if task == "generate" and len(self._reserved) >= MAX_SEQUENCES:
            raise NoRoomNow
        try:
            return await self._stage(located, first, end, precision, kv, task)
        except Unavailable as error:
            fits = StageCost(located.manifest, precision).total(first, end, 0) + kv <= self.memory
            if "needed" in error.details and fits and self._in_use():
                raise NoRoomNow from error
            raise
        except Busy as error:
            await self._make_way(error)
            return await self._stage_now(located, first, end, precision, kv, task)

    async def _make_way(self, error: Busy, keep: str | None = None) -> None:
        """The worker counts what the formula can't know, other stages' activations and contexts: an idle stage goes for it, the longest
        unused, else whoever uses one is waited for, else `error` is what it comes to."""
        idle = self._idle(keep)
        if idle:
            await self._let_go(idle[0])
        elif self._in_use():
            raise NoRoomNow from error
        else:
            raise error

    def _idle(self, keep: str | None) -> list[LoadedStage]:
        """The longest unused first, what others are told of last."""
        idle = (stage for stage in self._stages.values() if not stage.users and stage.key != keep)
        return sorted(idle, key=lambda stage: (stage.key == self.lasting, stage.used_at))

    async def _let_go(self, stage: LoadedStage) -> None:
        self._stages.pop(stage.key, None)
        await self._worker.unload(stage.key)

    async def prepare(self, located: Located, first: int, end: int, precision: str) -> dict[str, float]:
        """Loads a stage ahead of its use, into room that nobody uses; its timings. `Busy` when others would have to go for it."""
        check_runnable(located.manifest)
        async with self._alone():
            await self._worker_up()
            needed, key = StageCost(located.manifest, precision).total(first, end, 0), stage_key(located, first, end, precision)
            if key not in self._stages and needed > min(self._unused(), PREPARE_MOST):
                raise Busy(f"{needed} bytes are too much for a stage that may never be used")
            stage = await self._stage(located, first, end, precision, 0)
            stage.used_at = time.monotonic()
            return dict(stage.timings)

    def _unused(self) -> int:
        """Bytes that nothing holds, or stages that nobody has used or got ready for a while."""
        since = time.monotonic() - UNUSED
        kept = [stage for stage in self._stages.values() if stage.users or stage.used_at > since or stage.key == self.lasting]
        return self.memory - sum(stage.bytes for stage in kept) - sum(self._reserved.values())

    @asynccontextmanager
    async def encoder(self, located: Located, task: str, precision: str, asker: Asker = PATIENT) -> AsyncIterator[LoadedStage]:
        """The whole model, loaded to embed or classify; it isn't let go before leaving. It waits in line for room."""

        async def attempt() -> LoadedStage:
            async with self._alone():
                stage = await self._stage_now(located, 0, layer_count(located.manifest), precision, 0, task)
                stage.users += 1
                return stage

        stage = await self.line.enter(asker, attempt)
        try:
            yield stage
        finally:
            stage.users -= 1
            stage.used_at = time.monotonic()
            self.line.freed()

    def _kv_bytes(self, manifest: Manifest, first: int, end: int, tokens_max: int, precision: str) -> int:
        cost = StageCost(manifest, precision)
        return cost.total(first, end, tokens_max) - cost.total(first, end, 0)

    def _choice(self, located: Located, first: int, end: int, precision: str, task: str, kv: int) -> tuple[str, Choice]:
        """The stage that a session is for, by its key, and the engine it is to be loaded into."""
        key = stage_key(located, first, end, precision, task)
        needed = StageCost(located.manifest, precision).total(first, end, 0)
        beside, held = f"{key}+torch", self._stages.get(key)
        by_llama = held is not None and held.engine == "llama"
        others = sum(self._stages[name].users for name in (key, beside) if name in self._stages) if by_llama or held is None else 0
        choice = self._engines.choose(located, precision, task=task, others=others, roomy=needed + 2 * kv <= self.memory)
        if not others or choice.engine == "llama":
            return key, choice
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
        before, beside = self._worker.memory(), frozenset(self._stages)
        groups = await gather(self._assembler, located, stage_groups(located.manifest, first, end))
        assemble = time.monotonic() - started
        making = LoadedStage(
            key, 0, precision=precision, model=model_text(located.model), first=first, end=end, before=before, beside=beside
        )
        making.timings["assemble"] = assemble
        self._load = asyncio.create_task(self._made(making, located, groups, choice, task), name="load a stage")
        self._load.add_done_callback(lambda load: load.cancelled() or load.exception())
        return await asyncio.shield(self._load)

    async def _made(self, stage: LoadedStage, located: Located, groups: Sequence[GroupBytes], choice: Choice, task: str) -> LoadedStage:
        """`stage` once the worker has it; `groups` are closed."""
        started = time.monotonic()
        try:
            load = LoadStage(
                stage=stage.key,
                model=stage.model,
                first=stage.first,
                end=stage.end,
                layers=layer_count(located.manifest),
                tensors=tensor_places(located.manifest, stage_groups(located.manifest, stage.first, stage.end)),
                lengths=[group.length for group in groups],
                precision=stage.precision,
                task=task,
                engine=self._engines.asked if choice.engine == "llama" else "torch",
                checked=self._lean.get(stage.key, ""),
            )
            await self.text(located)
            loaded = await self._load_or_instead(located, load, [group.fd for group in groups])
        finally:
            for group in groups:
                group.close()
        if loaded.lean:
            self._lean[stage.key] = loaded.lean
        stage.bytes, stage.goes_back, stage.checked = loaded.bytes, loaded.goes_back, loaded.self_test
        stage.engine, stage.why = loaded.engine, choice.why if choice.engine == "torch" else loaded.why
        stage.timings["load"], stage.used_at = time.monotonic() - started, time.monotonic()
        self._stages[stage.key] = stage
        fields = {
            "model": stage.model,
            "first": stage.first,
            "end": stage.end,
            "bytes": stage.bytes,
            "engine": stage.engine,
            "why": stage.why,
        }
        log.info("stage loaded", extra={"event": "stage_loaded", "fields": fields})
        return stage

    async def _load_or_instead(self, located: Located, load: LoadStage, fds: list[int]) -> StageLoaded:
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

        idle = self._idle(keep)
        free = max(0, self.memory - used() + sum(stage.bytes for stage in idle))
        if needed > free:
            raise Unavailable(
                f"this stage takes {needed} bytes, {free} of {self.memory} are free",
                hint=f"--max-memory {megabytes(needed + self.memory - free)} would do, or waiting for running sessions",
                details={"needed": needed, "free": free},
            )
        while used() + needed > self.memory and idle:
            await self._let_go(idle.pop(0))

    async def _close(self, session: str, left: Left | None = None) -> None:
        try:
            await self._worker.close_sequence(session, left)
        except MfError as error:
            log.debug("a sequence wasn't closed: %s", error)

    async def _worker_up(self) -> None:
        """Starts the worker; in a new life nothing is loaded any more."""
        await self._worker.start()
        if self._worker.generation != self._generation:
            self._generation = self._worker.generation
            if self._worker.crashed:
                self._lean.clear()
            for stage in self._stages.values() if self._worker.crashed else ():
                if stage.engine == "llama" and (stage.users or time.monotonic() - stage.used_at < SUSPECT):
                    self._engines.crashed(stage.model, stage.precision, self._worker.ended)
            self._stages.clear()
            self._texts.clear()


def stage_key(located: Located, first: int, end: int, precision: str, task: str = "generate") -> str:
    """What the worker knows the stage by."""
    return f"{model_text(located.model)}[{first}:{end}]{precision}" + ("" if task == "generate" else task)
