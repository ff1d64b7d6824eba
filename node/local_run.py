"""A reply made whole by this node's worker: no session, no steps, a note for each pass with tokens and text of it.

The worker's death is a lost stage like any other: what was made so far is the prompt of the next try.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from node.gateway import StageTime
from node.locate import Located
from node.pipeline import PipelineRequest, Sampled, StageLost
from node.stage_room import StageRoom
from node.waiting_line import Asker
from node.worker import Worker
from protocol.errors import MfError
from protocol.ids import PeerId
from protocol.messages import TokenLogprob
from runtime.interface import Generate, Generated, Made


class LocalRun:
    """One run; `timings` as a pipeline's, and what the worker tells of its own at the end."""

    def __init__(self, me: PeerId, room: StageRoom, worker: Worker, located: Located, queued: Callable[[int], None] | None = None) -> None:
        """`queued` hears the position in line while there is no room."""
        self._queued = queued
        self._me = me
        self._room = room
        self._worker = worker
        self._located = located
        self.timings: dict[str, float] = {}
        self._lined, self.reused = 0.0, 0
        self._told: Generated | None = None
        self.scores: dict[int, list[TokenLogprob]] = {}
        """Of the prompt's tokens by their place, where they are asked."""
        self.memory: int | None = None
        """Bytes that the model takes here, as measured at the end of the run."""

    async def run(self, request: PipelineRequest) -> AsyncGenerator[Sampled, None]:
        """Tokens as they come; raises `StageLost` when the worker can't go on. Closing it ends the work before the next pass."""
        started, session, first = time.monotonic(), secrets.token_hex(16), True
        tokens_max = len(request.tokens) + request.new_max
        asker = Asker(request.account, self._queued, begun=0 < request.prompt < len(request.tokens))
        try:
            async with self._room.reply(self._located, request.precision, session, tokens_max, asker) as stage:
                self.timings = {**stage.timings, "open": time.monotonic() - started}
                self._lined = max(0.0, self.timings["open"] - sum(stage.timings.values()))
                asked = Generate(
                    stage=stage.key,
                    session=session,
                    tokens=request.tokens,
                    tokens_max=tokens_max,
                    new_max=request.new_max,
                    stop_tokens=request.stop_tokens,
                    sampling=request.sampling,
                    reply=request.tokens[request.prompt :] or None,
                    text=True,
                    drafts=request.drafts,
                    account=request.account,
                    weight=request.weight,
                    priority=request.priority,
                    reader=request.reader,
                    score=request.score,
                )
                async with aclosing(self._worker.generate(asked)) as notes:
                    async for sampled in self._sampled(notes):
                        if first or sampled.finish is not None:  # a stop string ends it from outside
                            first, self.memory = False, self._room.measured(stage) or self.memory
                        yield sampled
        except StageLost:
            raise
        except MfError as error:
            raise StageLost(self._me, error.message, error) from error

    def stages(self, layers: int) -> list[StageTime]:
        """The whole model's time as the worker told it; nothing where it didn't come to its end."""
        times = () if self._told is None else (self._told.prefill, self._told.decode, self._told.wait)
        return [StageTime(self._me, 0, layers, *times)]

    async def _sampled(self, notes: AsyncGenerator[Made | Generated, None]) -> AsyncGenerator[Sampled, None]:
        async for note in notes:
            if isinstance(note, Generated):
                self.timings |= {"queue": self._lined + note.wait, "prefill": note.prefill, "decode": note.decode}
                self._told, self.reused = note, note.reused
                return
            if note.scored is not None:
                self.scores = dict(enumerate(note.scored, 1))
            for at, token in enumerate(note.tokens):
                end = at == len(note.tokens) - 1
                spelled = note.logprobs[at] if note.logprobs is not None and at < len(note.logprobs) else None
                yield Sampled(token, note.finish if end else None, text=note.text if end else "", spelled=spelled)
