"""What sessions leave at this node's stages: under which name, and that a session which asks for it doesn't come a moment too early.

The next turn of a conversation may arrive while the one before is still being put away: both are the entry's messages, over two streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from protocol.messages import OpenSession, StageSpec
from runtime.interface import Left

PATIENCE = 1.0
"""Seconds that a session waits for the end of the one it goes on from."""


def left_by(request: OpenSession, spec: StageSpec, session: bytes | None = None) -> Left:
    """The name of what the session, or the one it names, leaves at a stage. The entry is who opened the stream: nobody names another's."""
    return Left(owner=f"entry {request.entry}", name=f"{(session or request.session).hex()}.{spec.first}.{spec.end}")


class Ending:
    """Which sessions run here, by what they may leave."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], asyncio.Event] = {}

    @asynccontextmanager
    async def running(self, left: Left) -> AsyncIterator[None]:
        """While it is held the session isn't over."""
        key, over = (left.owner, left.name), asyncio.Event()
        self._running[key] = over
        try:
            yield
        finally:
            over.set()
            if self._running.get(key) is over:
                del self._running[key]

    async def over(self, left: Left, patience: float = PATIENCE) -> None:
        """Until that session has left what it leaves, or `patience` is over."""
        running = self._running.get((left.owner, left.name))
        if running is None:
            return
        try:
            async with asyncio.timeout(patience):
                await running.wait()
        except TimeoutError:
            return
