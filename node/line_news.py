"""Where a request stands in line, told beside the tokens it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from node.gateway import Queued

T = TypeVar("T")


class LineNews:
    """`tell` takes places; only the newest counts, and only where it changed."""

    def __init__(self) -> None:
        self._position: int | None = None
        self._changed = asyncio.Event()

    def tell(self, position: int) -> None:
        if position != self._position:
            self._position = position
            self._changed.set()

    async def before_first(self, tokens: AsyncGenerator[T, None]) -> AsyncGenerator[T | Queued, None]:
        """`tokens`, with news until the first of them comes. Closing it ends them."""
        async with aclosing(tokens):
            first = asyncio.ensure_future(anext(tokens, None))
            try:
                async for position in self._until(first):
                    yield position
                token = first.result()
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            while token is not None:
                yield token
                token = await anext(tokens, None)

    async def during(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[Queued, None]:
        """News until `work` ends; raises what it raises. Closing it ends the work."""
        self._changed.clear()  # where it stood before is old news
        self._position = None
        task = asyncio.ensure_future(work)
        try:
            async for position in self._until(task):
                yield position
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _until(self, first: asyncio.Future[Any]) -> AsyncGenerator[Queued, None]:
        while not first.done():
            news: asyncio.Future[Any] = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait({first, news}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            if self._changed.is_set() and self._position is not None and not first.done():
                self._changed.clear()
                yield Queued(self._position)
