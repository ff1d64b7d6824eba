"""A reply's tokens turned into text by this node's worker, whatever becomes of the worker meanwhile.

The decoder lives in the worker, because what tokenizers do is done in the sandbox. When the worker dies, a new one gets the tokens so
far, and what it says of them beyond the text already given is new: the reader sees nothing of it. A worker takes seconds to start, so the
reply goes on meanwhile without its text, which comes with a later piece: what else died with the worker is replaced at the same time.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

from node.locate import Located
from node.stage_room import StageRoom
from node.worker import Worker
from protocol.errors import DeadlineExceeded, MfError, NotFound, Unavailable
from protocol.ids import model_text
from protocol.messages import TokenLogprob
from runtime.interface import SpelledToken

log = logging.getLogger(__name__)
PATIENCE = 20.0
"""Seconds for which a worker that ended is waited for: it is held back after crashes, and takes seconds to start."""
_PAUSE = 0.25
_ROWS = 512
"""Tokens spelled in one message: the worker computes nothing else meanwhile."""
_AWAY = (Unavailable, NotFound, DeadlineExceeded)
"""How a worker that ended, or one that has taken its place, answers."""
T = TypeVar("T")


async def patiently(worker: Worker, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives, tried again while the worker is away or has forgotten what it was told in a former life."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while True:
        try:
            return await work()
        except _AWAY as error:
            elsewhere = isinstance(error, Unavailable) and worker.running
            if elsewhere or loop.time() > end:
                raise
        await asyncio.sleep(_PAUSE)


class ReplyText:
    """Feed tokens, get whole characters."""

    def __init__(self, worker: Worker, room: StageRoom, located: Located) -> None:
        self._worker = worker
        self._room = room
        self._located = located
        self._stream = ""
        self._tokens: list[int] = []
        self._given = 0
        self._told = 0
        self._skip = 0
        self._taking_up: asyncio.Task[tuple[str, int]] | None = None

    async def _open(self) -> None:
        await self._room.text(self._located)
        self._stream = uuid.uuid4().hex
        await self._worker.open_text(model_text(self._located.model), self._stream)

    async def feed(self, tokens: list[int], *, last: bool = False, wait: bool = False) -> str:
        """New text of `tokens`; `last` gives what was held back, and the decoder goes.

        While a new worker starts this gives nothing, unless it is the last or shall `wait`: the text comes with that of later tokens.
        """
        self._tokens += tokens
        if last and self._told == len(self._tokens):
            return ""
        text = await self._text_of(tokens, last, last or wait)
        if last:
            self._stream = ""
        text, self._skip = text[self._skip :], max(0, self._skip - len(text))
        self._given += len(text)
        return text

    async def _text_of(self, tokens: list[int], last: bool, wait: bool) -> str:
        if self._taking_up is not None:
            return await self._taken_up(last) if wait or self._taking_up.done() else ""
        if not self._stream:
            return (await self._again(last))[0]
        try:
            return await self._worker.decode_text(self._stream, tokens, last=last)
        except _AWAY as error:
            log.info("the text of a reply is taken up by a new worker: %s", error)
        if wait:
            return (await self._again(last))[0]
        self._taking_up = asyncio.create_task(self._again(False), name="a reply's text")
        return ""

    async def _taken_up(self, last: bool) -> str:
        """What the new worker says of all tokens, those that came meanwhile too."""
        assert self._taking_up is not None
        task, self._taking_up = self._taking_up, None
        text, told = await task
        if not last and told == len(self._tokens):
            return text
        try:
            return text + await self._worker.decode_text(self._stream, self._tokens[told:], last=last)
        except _AWAY as error:
            log.info("the text of a reply is taken up by a third worker: %s", error)
            return (await self._again(last))[0]

    def told(self, tokens: list[int], text: str) -> None:
        """Tokens whose text came with them, all that can be said of it."""
        self._tokens += tokens
        self._given += len(text)
        self._stream, self._told = "", len(self._tokens)

    async def spell(self, logprobs: list[TokenLogprob]) -> list[SpelledToken]:
        """The token fed last, and those it was chosen among."""
        return ((await self._worker.spell_text(self._stream, [], [logprobs])).logprobs or [[]])[0]

    async def spell_all(self, rows: list[list[TokenLogprob]]) -> list[list[SpelledToken]]:
        """Of many tokens at once."""
        spelled: list[list[SpelledToken]] = []
        for at in range(0, len(rows), _ROWS):
            spelled += (await self._worker.spell_text(self._stream, [], rows[at : at + _ROWS])).logprobs or []
        return spelled

    async def _again(self, last: bool) -> tuple[str, int]:
        """By a worker that is new to it: the text of all tokens so far, and how many those were."""

        async def anew() -> tuple[str, int]:
            await self._open()
            told = len(self._tokens)
            return await self._worker.decode_text(self._stream, self._tokens[:told], last=last), told

        found = await patiently(self._worker, anew)
        self._skip = self._given  # the new decoder says all of it again, maybe not at once: it holds back half a character
        return found

    async def close(self) -> None:
        """Lets the worker forget a decoder that won't be read to its end."""
        if self._taking_up is not None:
            self._taking_up.cancel()
            await asyncio.gather(self._taking_up, return_exceptions=True)
        if not self._stream or not self._worker.running:
            return
        try:
            await self._worker.decode_text(self._stream, [], last=True)
        except MfError as error:
            log.debug("a text stream wasn't closed: %s", error)
