"""A reply's tokens turned into text by this node's worker, whatever becomes of the worker meanwhile.

The decoder lives in the worker, because what tokenizers do is done in the sandbox. When the worker dies, a new one gets the tokens so
far, and what it says of them beyond the text already given is new: the reader sees nothing of it.
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
T = TypeVar("T")


async def patiently(worker: Worker, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives, tried again while the worker is away or has forgotten what it was told in a former life."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while True:
        try:
            return await work()
        except (Unavailable, NotFound, DeadlineExceeded) as error:
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

    async def _open(self) -> None:
        await self._room.text(self._located)
        self._stream = uuid.uuid4().hex
        await self._worker.open_text(model_text(self._located.model), self._stream)

    async def feed(self, tokens: list[int], *, last: bool = False) -> str:
        """New text of `tokens`; `last` gives what was held back, and the decoder goes."""
        self._tokens += tokens
        if last and self._told == len(self._tokens):
            return ""
        try:
            text = await (self._worker.decode_text(self._stream, tokens, last=last) if self._stream else self._again(last))
        except (Unavailable, NotFound, DeadlineExceeded) as error:
            log.info("the text of a reply is taken up by a new worker: %s", error)
            text = await self._again(last)
        if last:
            self._stream = ""
        text, self._skip = text[self._skip :], max(0, self._skip - len(text))
        self._given += len(text)
        return text

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

    async def _again(self, last: bool) -> str:
        async def anew() -> str:
            await self._open()
            return await self._worker.decode_text(self._stream, self._tokens, last=last)

        text = await patiently(self._worker, anew)
        self._skip = self._given  # the new decoder says all of it again, maybe not at once: it holds back half a character
        return text

    async def close(self) -> None:
        """Lets the worker forget a decoder that won't be read to its end."""
        if not self._stream or not self._worker.running:
            return
        try:
            await self._worker.decode_text(self._stream, [], last=True)
        except MfError as error:
            log.debug("a text stream wasn't closed: %s", error)
