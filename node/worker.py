"""The worker process seen from the node: started on first use, restarted after a crash, each message a typed method.

The worker owns torch; a crash or out-of-memory there ends nothing here. What was loaded in it is gone then, so
`generation` counts its lives: whoever loaded a stage compares it and loads again. One that ended by itself starts again by itself: the
next to ask would else wait for it, seconds in the middle of a reply. Where another one stands by (node/spare_worker.py), that is at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from node.channel import Channel, ChannelClosed, Method, Unreadable
from node.spare_worker import SpareWorker
from node.turn import Turn
from node.worker_process import STOP_SECONDS, Outfit, WorkerProcess, how_it_ended
from protocol.errors import BadInput, DeadlineExceeded, MfError, Unavailable
from protocol.messages import TokenLogprob
from runtime import interface as api

log = logging.getLogger(__name__)
T = TypeVar("T")
LOAD_SECONDS = 600.0
CALL_SECONDS = 30.0
STEP_SECONDS = 120.0
_LINE_SECONDS = 600.0
"""At most so long a reply waits for its next token while others get theirs."""
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_REVIVED_AFTER = 2.0
"""Seconds after which one that ended starts again unasked: what it did goes on elsewhere first, maybe on this machine."""
_STEADY_SECONDS = 30.0
"""A worker that lived so long starts again without a pause."""
MAX_GROUPS_PER_STAGE = 250
_FAULTS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class Worker:
    """One worker process. Errors of every method: the worker's own, `Unavailable` when it ended, `DeadlineExceeded`."""

    def __init__(
        self,
        scratch: Path,
        *,
        threads: int,
        memory: int,
        reuse: bool = True,
        device: str = "cpu",
        turn: Turn | None = None,
        spare: bool = False,
    ) -> None:
        """`scratch`: a folder of the node's in which the worker's own is made; `memory` bytes for weights, KV, activations, which what
        `device` has may bound further. Steps begun in one `turn` reach it together. `spare`: another one stands by, where memory allows."""
        self._turn = turn or Turn()
        self._outfit = Outfit(scratch, threads, memory, reuse, device)
        self._methods: dict[str, Method] = {"made": self._take_made}
        self._with_spare = spare
        self._spare = SpareWorker(self._outfit, self._methods, self._turn)
        self._lock = asyncio.Lock()
        self._life: WorkerProcess | None = None
        self._channel: Channel | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._revival: asyncio.Task[None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._begun = 0.0
        self._answered = self._made = 0.0
        self.computed_at = 0.0
        """When a step was last asked for or answered, or a reply went on: by the monotonic clock."""
        self._loading = 0
        self._undoing: set[asyncio.Task[None]] = set()
        self._replies: dict[str, asyncio.Queue[api.Made | None]] = {}
        self._ended = "the worker isn't running"
        self._stopping = False
        self.killed = self.crashed = False
        """How the latest process ended: by a signal though nobody stopped it; by one that tells of a fault in its own code."""
        self.generation = 0
        self.figures: api.Usage | None = None
        """As told last (`refresh`)."""
        self.sandbox: dict[str, str] = {}
        self.device: api.DeviceTold | None = None
        """What it computes on, once it has said so."""
        self.on_loaded: Callable[[str, api.StageLoaded], None] = lambda _stage, _told: None
        self.stages: dict[str, api.StageLoaded] = {}
        """Loaded stages by name, emptied when the worker ends."""
        self._hearing: list[Callable[[MfError], None]] = []

    @property
    def ended(self) -> str:
        """How the latest process ended, in words."""
        return self._ended

    @property
    def reuse(self) -> bool:
        """Whether what a session computed may stay for the next one."""
        return self._outfit.reuse

    @property
    def running(self) -> bool:
        return self._channel is not None and not self._channel.closed.is_set()

    @property
    def pid(self) -> int | None:
        return self._life.pid if self._life is not None else None

    def memory(self) -> int | None:
        """Bytes of memory that its process has now, as the system counts them; None where it doesn't run or that isn't told."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1] if self.running else None
        except (OSError, IndexError):
            return None
        return None if pages is None else int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def failures(self) -> int:
        """Times in a row that the process ended by itself, and soon."""
        return self._failures

    @property
    def held_back(self) -> float:
        """Seconds until it may be started again."""
        return max(0.0, self._not_before - time.monotonic())

    async def start(self) -> None:
        """Starts the process unless it runs; `Unavailable` while it is held back after crashes.

        An asker that leaves meanwhile doesn't end the start: the next one finds it done.
        """
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name="worker start")
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        async with self._lock:
            if self.running:
                return
            if self._watcher is not None:
                await self._watcher
            wait = self._not_before - time.monotonic()
            if wait > 0:
                raise Unavailable(self._ended, hint=f"it starts again in {wait:.0f} s")
            await self._spawn()

    async def stop(self) -> None:
        """Ends the process and removes its scratch folder."""
        self._stopping = True
        for task in (self._revival, self._starting):
            if task is not None:
                task.cancel()
        async with self._lock:
            if self._channel is not None:
                await self._channel.close()
            if self._watcher is not None:
                await self._watcher
            await self._spare.stop()

    async def load_text(self, params: api.LoadText) -> api.TextLoaded:
        return await self._call("load_text", params, api.TextLoaded, LOAD_SECONDS)

    async def load_stage(self, params: api.LoadStage, fds: Sequence[int]) -> api.StageLoaded:
        """`fds` one per group, in the order of `lengths`; they stay the caller's to close."""
        if len(fds) > MAX_GROUPS_PER_STAGE:
            raise BadInput(f"a stage of {len(fds)} groups, at most {MAX_GROUPS_PER_STAGE} can be passed at once")
        self._loading += 1
        try:
            loaded = await self._call("load_stage", params, api.StageLoaded, LOAD_SECONDS, fds)
        except (asyncio.CancelledError, DeadlineExceeded, Unreadable):
            self._undo("unload", api.Unload(stage=params.stage))
            raise
        finally:
            self._loading -= 1
        self.stages[params.stage] = loaded
        self.on_loaded(params.stage, loaded)
        return loaded

    async def take_compiled(self, stage: str, fds: Sequence[int], lengths: Sequence[int]) -> api.CompiledTaken:
        """`fds` stay the caller's to close."""
        params = api.TakeCompiled(stage=stage, lengths=list(lengths))
        return await self._call("take_compiled", params, api.CompiledTaken, fds=fds)

    async def take_lane(self, params: api.TakeLane, fd: int) -> None:
        """`fd` stays the caller's to close. An asker that leaves meanwhile has no lane, and the worker none that nobody knows."""
        try:
            await self._call("take_lane", params, type(None), fds=[fd])
        except (asyncio.CancelledError, DeadlineExceeded):
            self._undo("drop_lane", api.DropLane(lane=params.lane))
            raise

    async def drop_lane(self, params: api.DropLane) -> None:
        await self._call("drop_lane", params, type(None))

    async def unload(self, stage: str) -> None:
        self.stages.pop(stage, None)
        if self.running:
            await self._call("unload", api.Unload(stage=stage), type(None))

    async def encode_chat(
        self, model: str, messages: list[dict[str, Any]], *, continue_final: bool = False, tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        params = api.EncodeChat(model=model, messages=messages, continue_final=continue_final, tools=tools)
        return (await self._call("encode_chat", params, api.Tokens)).tokens

    async def encode_text(self, model: str, text: str) -> list[int]:
        return (await self._call("encode_text", api.EncodeText(model=model, text=text), api.Tokens)).tokens

    async def open_text(self, model: str, stream: str) -> None:
        await self._call("open_text", api.OpenText(model=model, stream=stream), type(None))

    async def decode_text(self, stream: str, tokens: list[int], *, last: bool = False) -> str:
        params = api.DecodeText(stream=stream, tokens=tokens, last=last)
        return (await self._call("decode_text", params, api.Text, together=True)).text

    async def spell_text(self, stream: str, tokens: list[int], logprobs: list[list[TokenLogprob]]) -> api.Text:
        """As `decode_text`, with the tokens' logarithms spelled out."""
        return await self._call("decode_text", api.DecodeText(stream=stream, tokens=tokens, logprobs=logprobs), api.Text)

    async def open_sequence(self, params: api.OpenSequence) -> api.Opened:
        try:
            return await self._call("open_sequence", params, api.Opened)
        except asyncio.CancelledError:
            self._undo("close_sequence", api.CloseSequence(session=params.session))
            raise

    async def step(self, params: api.Step) -> api.Stepped:
        return await self._call("step", params, api.Stepped, STEP_SECONDS)

    async def generate(self, params: api.Generate) -> AsyncGenerator[api.Made | api.Generated, None]:
        """A whole reply by a stage that is a whole model, as it is made, and at last how it went; closing the iterator ends it there.

        Nothing new for it nor for any other reply, be it a part of a prompt, for `STEP_SECONDS` is `DeadlineExceeded`, as ten minutes
        beside others' are: one of many waits for the prompts of the rest.
        """
        made: asyncio.Queue[api.Made | None] = asyncio.Queue()
        self._replies[params.session] = made
        call = asyncio.create_task(self._call("generate", params, api.Generated, None), name="generate")
        call.add_done_callback(lambda _call: made.put_nowait(None))
        try:
            while (note := await self._next_note(made)) is not None:
                yield note
            yield call.result()
        finally:
            del self._replies[params.session]
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def _next_note(self, made: asyncio.Queue[api.Made | None]) -> api.Made | None:
        begun = time.monotonic()
        while (left := min(max(begun, self._made) + STEP_SECONDS, begun + _LINE_SECONDS) - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    return await made.get()
        self._end_if_stuck(STEP_SECONDS)
        raise DeadlineExceeded(f"the worker made no token and got no further with the prompt within {time.monotonic() - begun:.0f} s")

    async def _take_made(self, params: Any, _fds: list[int]) -> None:
        """What replies made in one pass of the worker."""
        self._answered = self._made = self.computed_at = time.monotonic()
        for note in msgspec.convert(params, list[api.Made], builtin_types=(bytes,)):
            if (waiting := self._replies.get(note.session)) is not None:
                waiting.put_nowait(note)

    def begin_step(self, params: api.Step, done: Callable[[api.Stepped | MfError], None]) -> None:
        """As `step`, for the way between two stages, where each turn of the loop counts: `done` gets the answer or the error, once."""
        channel = self._channel
        if channel is None:
            done(Unavailable(self._ended))
            return

        def answered(result: Any, error: MfError | None) -> None:
            if isinstance(error, ChannelClosed):
                task = asyncio.create_task(self._tell_ended(done))
                self._undoing.add(task)
                task.add_done_callback(self._undoing.discard)
                return
            self._answered = self.computed_at = time.monotonic()
            done(result if error is None else error)

        channel.ask("step", params, api.Stepped, answered)

    async def _tell_ended(self, done: Callable[[api.Stepped | MfError], None]) -> None:
        if self._watcher is not None:
            await asyncio.wait([self._watcher], timeout=STOP_SECONDS + 1)
        done(self._gone())

    def _gone(self) -> Unavailable:
        return Unavailable(self._ended, hint="ask again: it starts anew")

    def when_ended(self, told: Callable[[MfError], None]) -> None:
        """`told` hears once of the process's end, whoever has asked it something just then or not; soon where it has ended already."""
        self._hearing.append(told)
        if not self.running:
            told(self._gone())

    def forget(self, told: Callable[[MfError], None]) -> None:
        """It isn't told any more."""
        if told in self._hearing:
            self._hearing.remove(told)

    @property
    def waiting(self) -> int:
        """Calls that the worker hasn't answered yet."""
        return self._channel.waiting if self._channel is not None and self.running else 0

    async def encode(self, params: api.Encode) -> api.Encoded:
        return await self._call("encode", params, api.Encoded, STEP_SECONDS)

    async def close_sequence(self, session: str, left: api.Left | None = None) -> None:
        """`left`: under which name what it computed may stay."""
        if self.running:
            await self._call("close_sequence", api.CloseSequence(session=session, left=left), type(None))

    async def usage(self) -> api.Usage:
        self.figures = await self._call("usage", None, api.Usage)
        return self.figures

    async def refresh(self, seconds: float) -> None:
        """Keeps `figures` that fresh while the process runs; for ever."""
        while True:
            await asyncio.sleep(seconds)
            if not self.running:
                continue
            try:
                await self.usage()
            except MfError as error:
                log.debug("the worker didn't tell its figures: %s", error)

    async def ping(self) -> None:
        await self._call("ping", None, type(None))

    async def _call(
        self,
        method: str,
        params: Any,
        kind: type[T],
        seconds: float | None = CALL_SECONDS,
        fds: Sequence[int] = (),
        *,
        together: bool = False,
    ) -> T:
        if not self.running:
            await self.start()
        channel = self._channel
        if channel is None:
            raise Unavailable(self._ended)
        try:
            answer = await channel.call(method, params, kind, fds=fds, timeout=seconds, together=together)
        except ChannelClosed:
            if self._watcher is not None:
                await asyncio.wait([self._watcher], timeout=STOP_SECONDS + 1)
            raise self._gone() from None
        except DeadlineExceeded:
            self._end_if_stuck(seconds or CALL_SECONDS)
            raise
        except MfError:
            self._answered = time.monotonic()
            raise
        self._answered = time.monotonic()
        return answer

    def _end_if_stuck(self, seconds: float) -> None:
        """A call may wait behind others' work; a worker that answered nobody for so long, and isn't loading, is stuck."""
        patience = LOAD_SECONDS if self._loading else seconds
        if self._life is not None and time.monotonic() - self._answered >= patience:
            self._life.kill()

    def _undo(self, method: str, params: Any) -> None:
        """What was asked for is done though its asker left: taken back in the same order, without waiting."""
        if self._channel is not None and self.running:
            task = asyncio.create_task(_tell(self._channel, method, params))
            self._undoing.add(task)
            task.add_done_callback(self._undoing.discard)

    async def _spawn(self) -> None:
        life = self._spare.take() or await WorkerProcess.spawn(self._outfit, self._methods, self._turn)
        self._life, self._begun, self._stopping = life, time.monotonic(), False
        self.generation += 1
        self._watcher = asyncio.create_task(self._watch(life), name="worker's end")
        try:
            await self._configure(life)
        except BaseException:
            await life.channel.close()
            raise
        self._channel, self._answered = life.channel, time.monotonic()
        if self._with_spare and self.device is not None and self.device.name == "cpu":
            self._spare.ask()

    async def _configure(self, life: WorkerProcess) -> None:
        stood_by = life.told is not None
        try:
            told = life.told or await life.configure(self._outfit)
        except (ChannelClosed, DeadlineExceeded):
            await life.channel.close()
            if self._watcher is not None:
                await self._watcher
            raise Unavailable(self._ended, hint="is torch installed in this environment?") from None
        self.sandbox, self.device = told.sandbox, told.device
        seconds = time.monotonic() - self._begun
        fields = {"pid": life.pid, "seconds": seconds, "stood_by": stood_by}
        log.info("worker started in %.1f s", seconds, extra={"event": "worker_started", "fields": fields})

    async def _watch(self, life: WorkerProcess) -> None:
        """Waits for the end of one worker process and tidies up behind it."""
        code = await life.ending
        self.stages.clear()
        self._ended = f"the worker ended ({how_it_ended(code)})"
        self.killed, self.crashed = code < 0 and not self._stopping, -code in _FAULTS
        hearing, self._hearing = self._hearing, []
        for told in hearing:
            told(self._gone())
        if code == 0:
            self._failures = 0
            return
        self._hold_back()
        log.warning(self._ended, extra={"event": "worker_ended", "fields": {"code": code}})
        if life.channel is self._channel and not self._stopping:
            self._revival = asyncio.create_task(self._revive(), name="worker revival")

    async def _revive(self) -> None:
        """After a life in which it worked; one that can't even start is left to whoever asks."""
        await asyncio.sleep(max(0.0 if self._spare.ready else _REVIVED_AFTER, self.held_back))
        try:
            await self.start()
        except MfError as error:
            log.info("the worker didn't start again by itself: %s", error)

    def _hold_back(self) -> None:
        """After a crash, pauses that double; the first start after a steady life comes at once."""
        steady = time.monotonic() - self._begun >= _STEADY_SECONDS
        self._failures = 1 if steady else self._failures + 1
        if self._failures > 1:
            pause = min(_FIRST_PAUSE * 2 ** (self._failures - 2), _LONGEST_PAUSE)
            self._not_before = time.monotonic() + pause


async def _tell(channel: Channel, method: str, params: Any) -> None:
    try:
        await channel.notify(method, params)
    except ChannelClosed:
        log.debug("the worker left before %s", method)
