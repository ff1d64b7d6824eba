"""A reply's tokens turned into text by this node's worker, whatever becomes of the worker meanwhile.

The decoder lives in the worker, because what tokenizers do is done in the sandbox. When the worker dies, a new one gets the tokens so
far, and what it says of them beyond the text already given is new: the reader sees nothing of it.
"""

from __future__ import annotations

import logging
import uuid

from node.locate import Located
from node.stage_room import StageRoom
from node.worker import Worker
from protocol.errors import DeadlineExceeded, MfError, NotFound, Unavailable
from protocol.ids import model_text

log = logging.getLogger(__name__)
_TRIES = 4


class ReplyText:
    """Feed tokens, get whole characters."""

    def __init__(self, worker: Worker, room: StageRoom, located: Located) -> None:
        self._worker = worker
        self._room = room
        self._located = located
        self._stream = ""
        self._tokens: list[int] = []
        self._given = 0

    async def open(self) -> None:
        """A decoder in the worker that runs now."""
        for last in range(_TRIES):
            try:
                await self._room.text(self._located)
                self._stream = uuid.uuid4().hex
                await self._worker.open_text(model_text(self._located.model), self._stream)
                return
            except (Unavailable, NotFound, DeadlineExceeded):
                if last == _TRIES - 1:
                    raise

    async def feed(self, tokens: list[int], *, last: bool = False) -> str:
        """New text of `tokens`; `last` gives what was held back, and the decoder goes."""
        self._tokens += tokens
        try:
            text = await self._worker.decode_text(self._stream, tokens, last=last)
        except (Unavailable, NotFound, DeadlineExceeded) as error:
            log.info("the text of a reply is taken up by a new worker: %s", error)
            text = await self._again(last)
        if last:
            self._stream = ""
        self._given += len(text)
        return text

    async def _again(self, last: bool) -> str:
        for left in range(_TRIES, 0, -1):
            try:
                await self.open()
                return (await self._worker.decode_text(self._stream, self._tokens, last=last))[self._given :]
            except (Unavailable, NotFound, DeadlineExceeded):
                if left == 1:
                    raise
        return ""

    async def close(self) -> None:
        """Lets the worker forget a decoder that won't be read to its end."""
        if not self._stream or not self._worker.running:
            return
        try:
            await self._worker.decode_text(self._stream, [], last=True)
        except MfError as error:
            log.debug("a text stream wasn't closed: %s", error)
