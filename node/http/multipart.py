"""A multipart body, part after part, as it comes: nothing of it is held but the part's own buffer.

Only `name` and `filename` of a part's header are heard. Nested multipart and encoded parts are refused: what would be stored isn't what
was sent. Every wait for bytes has a deadline, so that a body that stands still ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import BodyPartReader, MultipartReader, hdrs, http_exceptions, web

from protocol.errors import BadInput, DeadlineExceeded, TooLarge

_PIECE = 256 * 1024


@dataclass(frozen=True)
class Part:
    """`name` of the field, `file` its file's name if it is one."""

    name: str
    file: str | None
    reader: BodyPartReader
    silence: float

    async def pieces(self) -> AsyncIterator[bytes]:
        while not self.reader.at_eof():
            with _well_formed():
                piece = await in_time(self.reader.read_chunk(_PIECE), self.silence)
            if piece:
                yield bytes(piece)

    async def small(self, most: int) -> bytes:
        """All of it; `TooLarge` past `most` bytes."""
        held = bytearray()
        async for piece in self.pieces():
            held += piece
            if len(held) > most:
                raise TooLarge(f"the part {self.name[:64]!r} has at most {most} bytes")
        return bytes(held)


async def parts(request: web.Request, silence: float) -> AsyncIterator[Part]:
    """The parts in order; each must be read before the next. `BadInput` for a body that isn't what its type says."""
    with _well_formed():
        reader = await request.multipart()
    while True:
        with _well_formed():
            part = await in_time(reader.next(), silence)
        if part is None:
            return
        if isinstance(part, MultipartReader):
            raise BadInput("multipart within multipart isn't taken here")
        if hdrs.CONTENT_ENCODING in part.headers or part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "binary").lower() != "binary":
            raise BadInput("an encoded part isn't taken here", hint="send its bytes as they are")
        yield Part(part.name or "", part.filename, part, silence)


@contextmanager
def _well_formed() -> Iterator[None]:
    """aiohttp's reader says by several means that a body isn't what it should be, assertions among them."""
    try:
        yield
    except (ValueError, AssertionError, http_exceptions.HttpProcessingError) as error:
        raise BadInput("the body isn't well-formed multipart, or broke off", hint="GET the status, and go on from there") from error


async def in_time(wait, seconds: float):  # type: ignore[no-untyped-def]
    """`wait` under the deadline of one read."""
    try:
        async with asyncio.timeout(seconds):
            return await wait
    except TimeoutError:
        raise DeadlineExceeded(f"no byte of the body came for {seconds:g} s", hint="go on with PUT and Content-Range") from None
