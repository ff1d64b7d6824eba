"""Everything that is loaded in this worker, and the loop that computes it.

    step:  schedule -> compute -> sample -> answer

Messages come between passes (runtime/worker.py): they open and close sequences and queue work; `step` computes one pass of whatever
waits for one stage, be they steps of pipelines or replies made whole here, and answers what is done. So sequences join and leave at
every pass, and one that is cancelled is gone before the next.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Listed
from math import inf
from pathlib import Path
from typing import Any

import torch

from protocol.errors import BadInput, MfError, NotFound
from protocol.messages import Sampling
from protocol.sampling_check import check_sampling
from runtime import compiled
from runtime import interface as api
from runtime.drafting import Drafter
from runtime.engine_room import EngineRoom
from runtime.generation import Generation
from runtime.heap import pss, trim
from runtime.kv_pool import KVPool, Place
from runtime.lanes import Lanes
from runtime.loaded import Loaded, Price, loading, price_of
from runtime.loads import Answer, Loads
from runtime.memory import ROWS, logit_rows
from runtime.model_runner import ModelRunner, Reserving
from runtime.passes import Part, compute, sample
from runtime.reply_state import ReplyState
from runtime.scheduler import Scheduler, Told
from runtime.sequence import Sequence
from runtime.session import Session
from runtime.sliced import Sliced, whole
from runtime.telling import Telling
from runtime.texts import Texts

log = logging.getLogger(__name__)
MAX_TEXTS = 256
DRAFT_ROWS = 32
"""Guessed tokens in a pass, over all its replies."""
LIGHTEST, MOST_PRIORITY = 1e-3, 16
CHECKED_ROWS = 8
"""Rows of an audit's step in one pass: few enough that tokens never keep it out."""
MEASURED_EVERY = 30.0
"""Seconds for which a measure of the process's memory holds while sequences are open."""
BRIEF = 0.03
"""Seconds of a pass that a reader doesn't see."""
ALONE_ROWS = 4
"""Rows of a pass where the runner computes them one after another: whoever is cancelled waits for no more."""


class Engine:
    """Models' texts, stages and sequences under one memory budget. Errors: `NotFound` for unknown names, else as each says.

    `tell(notes)` takes what replies made in a pass.
    """

    def __init__(self, config: api.WorkerConfig, tell: Callable[[list[api.Made]], None] | None = None) -> None:
        self.texts = Texts(Path(config.scratch))
        self.lanes = Lanes()
        self._reuse = config.reuse
        self._device = torch.device(config.device)
        self._news = Telling(tell or (lambda _notes: None))
        self._ended: list[tuple[Answer, Any]] = []
        self._stages: dict[str, Loaded] = {}
        self._sequences: dict[str, Sequence] = {}
        self._sessions: dict[str, Session] = {}
        self._replies: dict[str, tuple[Generation, str]] = {}
        self._weights = Told()
        self._scheduler = Scheduler(self._weights)
        self._pool = KVPool(self._drop_slot)
        self._coming: dict[str, Price] = {}
        self._loads = Loads()
        self._room = EngineRoom(config.memory, self._stages, self._coming, self._pool)
        self._opened: dict[str, tuple[int, int]] = {}
        self._by_stage: dict[str, api.StageUsage] = {}
        self._measured = 0, -inf
        self._took = inf
        """Seconds of the last pass."""
        self._counts = api.Usage(weights=0, kv=0, activations=0, base=0, sequences=0)

    def now(self) -> float:
        """Seconds, on the clock that says how long something is kept."""
        return time.monotonic()

    # Stages

    def load_stage(self, params: api.LoadStage, fds: Listed[int]) -> api.StageLoaded:
        """Refused with `Busy` before anything is loaded when the budget has no room."""
        return whole(self._loading(params, fds))

    def begin_load(self, params: api.LoadStage, fds: Listed[int], answer: Answer) -> None:
        """As `load_stage`, a slice after each pass; `answer` is called at its end. `fds` may be closed at once."""
        self._loads.begin(params.stage, self._loading(params, fds), answer)

    def _loading(self, params: api.LoadStage, fds: Listed[int]) -> Sliced[api.StageLoaded]:
        begun = time.perf_counter()
        if params.stage in self._stages or params.stage in self._coming:
            raise BadInput("load_stage: a stage of this name is loaded already")
        folder = self.texts.folders.get(params.model)
        if folder is None:
            raise NotFound("load_stage: the model's config isn't here; load_text comes first")
        price = price_of(folder, params)
        more = max(0, price.activations - self._room.activations)
        self._room.admit(price.weights + more, f"layers {params.first}..{params.end} at {params.precision}")
        self._coming[params.stage] = price
        try:
            loaded = yield from loading(folder, params, fds, price, self._device)
        finally:
            del self._coming[params.stage]
        self._stages[params.stage] = loaded
        self._by_stage[params.stage] = api.StageUsage(stage=params.stage)
        if loaded.runner is not None:
            self._scheduler.limit(params.stage, _rows_of(loaded.runner))
        trim()
        seconds = time.perf_counter() - begun
        told = api.StageLoaded(bytes=price.weights, seconds=seconds, self_test=loaded.checked, goes_back=loaded.goes_back)
        told.engine, told.why, told.lean = loaded.engine, loaded.why, loaded.lean
        told.runs = loaded.runner.precision if loaded.runner is not None else params.precision
        told.compilable = compiled.compilable(loaded.runner) if self._device.type == "cpu" else None
        return told

    def take_compiled(self, params: api.TakeCompiled, fds: Listed[int]) -> api.CompiledTaken:
        """Between two passes: sequences that run go on by it."""
        return compiled.take_from(self._stage(params.stage, "take_compiled").runner, self.texts.scratch, fds, params.lengths)

    def unload(self, params: api.Unload) -> None:
        self._loads.give_up(params.stage)
        for session in [name for name, sequence in self._sequences.items() if sequence.stage == params.stage]:
            self._close(session, NotFound("this stage is unloaded"))
        self._say()
        self._pool.forget_stage(params.stage)
        if (loaded := self._stages.pop(params.stage, None)) is not None:
            loaded.close()
        self._opened.pop(params.stage, None)
        self._by_stage.pop(params.stage, None)
        trim()

    def encode(self, params: api.Encode) -> api.Encoded:
        encoder = self._stage(params.stage, "encode").encoder
        if encoder is None:
            raise BadInput("encode: this stage was loaded to generate")
        if not 1 <= len(params.tokens) <= MAX_TEXTS:
            raise BadInput(f"encode: {len(params.tokens)} texts, 1 to {MAX_TEXTS} are allowed")
        rows = [encoder.vector(text, params.normalise) if encoder.task == "embed" else encoder.scores(text) for text in params.tokens]
        return api.Encoded(rows=[row.numpy().tobytes() for row in rows], labels=encoder.labels)

    # Sequences

    def open_sequence(self, params: api.OpenSequence) -> api.Opened:
        """What is named to be taken over is, where this model's memory can be cut exactly where it is asked."""
        if not 0 <= params.positions < max(params.tokens_max, 1):
            raise BadInput(f"open_sequence: {params.positions} positions to take over of {params.tokens_max}")
        goes_back = self._stage(params.stage, "open_sequence").goes_back
        after = params.after if self._reuse and goes_back and params.positions else None
        sequence, place = self._open("open_sequence", params, None if after is None else after.owner, (), after)
        sequence.position = self._go_on(sequence, place)
        self._reused(sequence, sequence.position)
        self._sessions[params.session] = Session(sequence, self.lanes)
        return api.Opened(reused=sequence.position)

    def take_step(self, params: api.Step, answer: Answer) -> None:
        """Queues a step; `answer` is called once it is computed, or now where it was before."""
        session = self._sessions.get(params.session)
        if session is None:
            raise NotFound("step: this session isn't open")
        try:
            session.take(params, answer)
        finally:
            self._wait(session.sequence)

    def generate(self, params: api.Generate, answer: Answer) -> None:
        """Begins a whole reply; `answer` is called at its end."""
        loaded = self._stage(params.stage, "generate")
        runner = loaded.runner
        if runner is None or runner.first or runner.end != runner.layers:
            raise BadInput("generate: this stage isn't a whole model")
        if not params.tokens or min(params.tokens) < 0 or max(params.tokens) >= runner.vocabulary:
            raise BadInput(f"generate: token ids must lie in 0..{runner.vocabulary - 1}, at least one")
        if not 0 < params.new_max <= params.tokens_max - len(params.tokens):
            raise BadInput(f"generate: {params.new_max} new tokens behind {len(params.tokens)} don't fit in {params.tokens_max} positions")
        stream = self.texts.new_stream(loaded.model) if params.text else None
        owner = params.reader if self._reuse and loaded.goes_back and not params.score else None
        sequence, place = self._open("generate", params, owner, params.tokens)
        reused = self._go_on(sequence, place)
        drafter = Drafter(params.tokens) if params.drafts and loaded.goes_back else None

        def ended(result: Any) -> None:
            self._close(params.session)
            self._ended.append((answer, result))

        made = Generation(sequence, params, stream, drafter, ended, self._news.keep, reused, self._draft_room)
        self._replies[params.session] = made, params.reader
        self._reused(sequence, reused)
        self._wait(sequence)

    def _draft_room(self) -> int:
        """Guesses are rows: alone they are nearly free, in a large pass each costs what a token does."""
        return DRAFT_ROWS // max(1, len(self._sequences))

    def close_sequence(self, params: api.CloseSequence) -> None:
        """A step that still waits is answered: whoever asked counts answers."""
        why = NotFound("this session is closed") if params.session in self._sessions else None
        self._close(params.session, why, params.left)

    # Passes

    @property
    def brief(self) -> bool:
        """Whether the next step is a pass that is over before anybody notices."""
        return self._took < BRIEF and len(self._scheduler) > 0 and not self._scheduler.long and not len(self._loads)

    @property
    def crowded(self) -> bool:
        """Whether what the next pass gives may be several things."""
        return len(self._scheduler) > 1

    @property
    def working(self) -> bool:
        """Whether `step` has something to compute."""
        return len(self._scheduler) > 0 or len(self._loads) > 0

    def step(self) -> None:
        """One pass of whoever is next, and as much time for what is loaded meanwhile, a slice at least: replies may wait for it too."""
        begun = time.perf_counter()
        if self._news and self._scheduler.long:
            self._say()
        if len(self._scheduler):
            self._pass()
        end = 2 * time.perf_counter() - begun
        while self._loads:
            self._loads.step()
            if time.perf_counter() >= end:
                break

    def _pass(self) -> None:
        parts = [Part(self._sequences[share.session], share.count) for share in self._scheduler.next_pass()]
        if not parts:
            return
        runner = parts[0].sequence.runner
        for group in [parts] if runner.batched else [[part] for part in parts]:
            seconds = self._compute(runner, group)
            self._answer(group)
            if seconds is not None:
                self._count(group, seconds)
        self._say()

    def _say(self) -> None:
        """What replies made, and only then that some are at their end. What may wait does so while short passes follow."""
        may_wait = bool(self._news) and not self._ended and not self._loads and len(self._scheduler) > 0 and not self._scheduler.long
        self._news.say(self.now(), may_wait=may_wait)
        ended, self._ended[:] = list(self._ended), []
        for answer, result in ended:
            answer(result)

    def _compute(self, runner: ModelRunner, parts: list[Part]) -> float | None:
        """The seconds it took, None where it failed. What a pass raises fails the sequences in it, and nothing else."""
        try:
            seconds = compute(runner, parts)
            sample(parts)
            return seconds
        except MfError as error:
            _blame(parts, error)
        except Exception as error:  # boundary: a foreign forward may raise anything; its text may hold a prompt, so only its kind is told
            log.error("a pass failed: %s", type(error).__name__)
            _blame(parts, MfError(f"the worker failed in a pass: {type(error).__name__}"))
        return None

    def _answer(self, parts: list[Part]) -> None:
        for part in parts:
            sequence = part.sequence
            if part.fault is not None:
                sequence.restart()
                sequence.driver.failed(part.fault)
            elif part.job is not None:
                part.job.onward = part.job.onward if len(parts) == 1 else None  # what a crowd gives goes as one
                sequence.driver.computed(part.job, part.hidden, part.chosen or [])
            elif sequence.name in self._replies:
                self._news.keep(api.Made(sequence.name, []))  # a long prompt takes minutes: whoever waits hears that it goes on
            if sequence.name in self._sequences:
                self._wait(sequence)

    def _count(self, parts: list[Part], seconds: float) -> None:
        counts, self._took = self._counts, seconds
        for one in (counts, self._by_stage[parts[0].sequence.stage]):
            one.passes, one.seconds, one.rows = one.passes + 1, one.seconds + seconds, one.rows + len(parts)
        for part in parts:
            made = len(part.chosen or ())
            counts.reply += made
            if part.job is not None and part.job.drafted:
                counts.drafted, counts.right = counts.drafted + len(part.job.drafted), counts.right + made - 1
            else:
                counts.prompt += part.count - (1 if made else 0)

    # Room

    def usage(self) -> api.Usage:
        self._pool.expire(self.now())
        weights, kv = sum(loaded.price.weights for loaded in self._stages.values()), self._pool.used + self._room.reserved
        now = {"weights": weights, "kv": kv, "activations": self._room.activations, "left": self._pool.left}
        now |= {"base": max(0, self._pss() - weights), "sequences": len(self._sequences), "waiting": len(self._scheduler)}
        now["sent"] = self.lanes.sent
        for name, value in now.items():
            setattr(self._counts, name, value)
        self._counts.stages = [self._used_by(one) for one in self._by_stage.values()]
        return self._counts

    def _pss(self) -> int:
        """The kernel takes 10 to 20 ms to add it up, which a token would wait for: looked at while nothing runs, or once in a while."""
        now = self.now()
        if not self._sequences or now - self._measured[1] >= MEASURED_EVERY:
            self._measured = pss(), now
        return self._measured[0]

    def _used_by(self, one: api.StageUsage) -> api.StageUsage:
        one.kv, one.left = self._pool.of(one.stage)
        one.sequences = sum(sequence.stage == one.stage for sequence in self._sequences.values())
        one.waiting = self._scheduler.waiting(one.stage)
        return one

    def _reused(self, sequence: Sequence, positions: int) -> None:
        self._counts.reused += positions
        self._by_stage[sequence.stage].reused += positions

    def _open(
        self,
        what: str,
        params: api.OpenSequence | api.Generate,
        owner: str | None,
        tokens: Listed[int],
        after: api.Left | None = None,
    ) -> tuple[Sequence, Place]:
        loaded = self._stage(params.stage, what)
        runner = loaded.runner
        if runner is None:
            raise BadInput(f"{what}: this stage was loaded to encode texts, not to generate")
        if params.session in self._sequences:
            raise BadInput(f"{what}: this session is open already")
        if params.tokens_max <= 0:
            raise BadInput(f"{what}: tokens_max must be at least 1")
        if loaded.context is not None and params.tokens_max > loaded.context:
            raise BadInput(f"{what}: {params.tokens_max} positions were asked, this model takes {loaded.context}")
        if not LIGHTEST <= params.weight <= 1 / LIGHTEST or abs(params.priority) > MOST_PRIORITY:
            raise BadInput(f"{what}: a weight of {params.weight:g} or a priority of {params.priority} is out of range")
        check_sampling(params.sampling, runner.vocabulary)
        state = self._state(loaded, params.sampling, params.reply)
        name, positions = ("", 0) if after is None or not isinstance(params, api.OpenSequence) else (after.name, params.positions)
        size, room = self._room.for_sequence(runner, params.tokens_max)
        place = self._pool.reserve(params.session, params.stage, size, room, owner, tokens, after=name, positions=positions, now=self.now())
        slots, positions = self._opened.get(params.stage, (0, 0))
        self._opened[params.stage] = max(slots, place.slot + 1), max(positions, params.tokens_max)
        try:
            runner.open(*self._opened[params.stage])
            if isinstance(runner, Reserving):
                runner.seat(place.slot, params.tokens_max)
        except BaseException:
            self._pool.release(params.session)
            raise
        self._sequences[params.session] = sequence = Sequence(params.session, params.stage, runner, place.slot, params.tokens_max, state)
        sequence.account, sequence.priority = params.account, params.priority
        self._weights.tell(params.account, params.weight)
        return sequence, place

    def _go_on(self, sequence: Sequence, place: Place) -> int:
        """Where in the prompt the sequence begins: behind what its slot holds already."""
        if not place.reused:
            return 0
        try:
            sequence.runner.crop(place.slot, place.reused)
        except MfError:
            sequence.restart()
            return 0
        return place.reused

    def _state(self, loaded: Loaded, sampling: Sampling, reply: list[int] | None) -> ReplyState:
        assert loaded.runner is not None
        last = loaded.runner.end == loaded.runner.layers
        matcher = self.texts.matcher(loaded.model, sampling) if last else None
        return ReplyState(sampling, secrets.randbits(63) if sampling.seed is None else sampling.seed, matcher, reply)

    def _wait(self, sequence: Sequence) -> None:
        """The job at the front of the sequence is in the scheduler, and nothing else of it."""
        if not sequence.jobs:
            self._scheduler.drop(sequence.name)
            return
        job, token = sequence.jobs[0], sequence.position > 0
        # Logits of all rows of a cut over a large vocabulary would be more than a stage reserves.
        every = job.check is not None or job.score is not None
        left = min(job.left, CHECKED_ROWS) if every else job.left
        rows = (left if every else len(job.drafted) + 1) if sequence.last and sequence.runner.batched else 1
        who, priority = sequence.account, sequence.priority
        self._scheduler.put(sequence.name, sequence.stage, left, token=token, account=who, priority=priority, rows=rows)

    def _close(self, session: str, why: MfError | None = None, left: api.Left | None = None) -> None:
        """Gives the room back at once; what still waits is told `why`."""
        sequence = self._sequences.pop(session, None)
        if sequence is None:
            return
        self._scheduler.drop(session)
        self._sessions.pop(session, None)
        generation, reader = self._replies.pop(session, (None, ""))
        if why is not None:
            sequence.driver.failed(why)
        reuse, now, width = self._reuse and self._stages[sequence.stage].goes_back, self.now(), sequence.runner.token_bytes
        if generation is not None and reuse and generation.over:
            # The last token wasn't computed, and what lies in its place may be a wrong guess.
            tokens = generation.tokens[: min(sequence.position, len(generation.tokens) - 1)]
            self._pool.release(session, reader, tokens, len(tokens) * width, now)
        elif generation is None and reuse and left is not None:
            self._pool.leave(session, left.owner, left.name, sequence.position, sequence.position * width, now)
        else:
            self._pool.release(session, now=now)

    def _drop_slot(self, stage: str, slot: int) -> None:
        loaded = self._stages.get(stage)
        if loaded is not None and loaded.runner is not None:
            loaded.runner.release(slot)

    def _stage(self, name: str, what: str) -> Loaded:
        loaded = self._stages.get(name)
        if loaded is None:
            raise NotFound(f"{what}: this stage isn't loaded")
        return loaded


def _rows_of(runner: ModelRunner) -> int:
    """In a pass. Where rows are computed one after another no two have logits at once."""
    if not runner.batched:
        return ALONE_ROWS
    return logit_rows(runner.vocabulary) if runner.end == runner.layers else ROWS


def _blame(parts: list[Part], error: MfError) -> None:
    for part in parts:
        part.fault = error


def set_threads(threads: int) -> None:
    torch.set_num_threads(max(1, threads))
