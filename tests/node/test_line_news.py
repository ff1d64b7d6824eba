"""News of the line come before the first token, and end with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from node.gateway import Queued
from node.line_news import LineNews
from protocol.errors import Busy
from tests.support.virtual_time import run_virtual


class Waiting:
    """Tokens that come once `open` is set."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.open = asyncio.Event()
        self.closed = False
        self._fault = fault

    async def tokens(self) -> AsyncGenerator[int, None]:
        try:
            await self.open.wait()
            if self._fault:
                raise self._fault
            yield 1
            yield 2
        finally:
            self.closed = True


def test_positions_come_before_the_first_token_and_none_after() -> None:
    async def scene() -> None:
        news, waiting = LineNews(), Waiting()
        events = news.before_first(waiting.tokens())
        news.tell(3)
        assert await anext(events) == Queued(3)
        news.tell(2)
        news.tell(1)
        assert await anext(events) == Queued(1)
        waiting.open.set()
        assert await anext(events) == 1
        news.tell(9)
        assert [event async for event in events] == [2]
        assert waiting.closed

    run_virtual(scene())


def test_leaving_while_it_waits_ends_what_it_waits_for() -> None:
    async def scene() -> None:
        news, waiting = LineNews(), Waiting()
        events = news.before_first(waiting.tokens())
        news.tell(1)
        await anext(events)
        await events.aclose()
        assert waiting.closed

    run_virtual(scene())


def test_a_refusal_comes_through() -> None:
    async def scene() -> None:
        news, waiting = LineNews(), Waiting(Busy("no room within 60 s"))
        waiting.open.set()
        with pytest.raises(Busy):
            await anext(news.before_first(waiting.tokens()))

    run_virtual(scene())
