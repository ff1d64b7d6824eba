"""Writing Server-Sent Events to a client that may be slow or gone.

A client that leaves is noticed in two ways: aiohttp cancels the handler when the connection closes
(`handler_cancellation`), and a write into a closed connection raises. Both unwind the handler, which closes the
generation. A client that stays and doesn't read is ended after `write_timeout`: no generation waits on it for longer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from aiohttp import web

log = logging.getLogger(__name__)

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class SlowClient(ConnectionError):
    """The client didn't read within the write timeout; its connection was closed."""


class EventStream:
    """One reply of events, whose errors are written into it too once it is open."""

    media = "text/event-stream; charset=utf-8"

    def __init__(self, request: web.Request, write_timeout: float, *, named: bool) -> None:
        self._request = request
        self._timeout = write_timeout
        self._named = named
        self._response = web.StreamResponse(headers={"Content-Type": self.media, **_HEADERS})

    async def open(self, headers: dict[str, str]) -> None:
        self._response.headers.update(headers)
        await self._response.prepare(self._request)

    async def send(self, data: Any, event: str | None = None) -> None:
        """One event with `data` as JSON; `event` is its name, for the API that names them."""
        await self._write(msgspec.json.encode(data), event)

    async def queued(self, position: int) -> None:
        """Where the reply stands in line; a comment for clients that know no such event."""
        if self._named:
            await self.send({"position": position}, "queued")
        else:
            await self._put(f": queued {position}\n\n".encode())

    async def done(self) -> web.StreamResponse:
        """Ends a whole reply; OpenAI's clients wait for `[DONE]`."""
        if not self._named:
            await self._write(b"[DONE]", None)
        await self._response.write_eof()
        return self._response

    async def fail(self, body: bytes) -> web.StreamResponse:
        """Ends a broken reply with its error, and without `[DONE]`."""
        await self._write(body, "error" if self._named else None)
        await self._response.write_eof()
        return self._response

    def _framed(self, data: bytes, event: str | None) -> bytes:
        name = f"event: {event}\n".encode() if event else b""
        return name + b"data: " + data + b"\n\n"

    async def _write(self, data: bytes, event: str | None) -> None:
        await self._put(self._framed(data, event))

    async def _put(self, framed: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._response.write(framed)
        except TimeoutError:
            self._abandon()
            raise SlowClient(f"the client read nothing for {self._timeout:g} s") from None

    def _abandon(self) -> None:
        log.info(
            "a client that doesn't read its stream was closed",
            extra={"event": "http_slow_client", "fields": {"seconds": self._timeout}},
        )
        if self._request.transport is not None:
            self._request.transport.abort()


class LineStream(EventStream):
    """One reply of JSON lines, as Ollama's clients read it."""

    media = "application/x-ndjson"

    def __init__(self, request: web.Request, write_timeout: float) -> None:
        super().__init__(request, write_timeout, named=True)

    async def queued(self, position: int) -> None:
        """These clients have no word for it."""

    def _framed(self, data: bytes, event: str | None) -> bytes:
        return data + b"\n"
