"""Connections that open and say nothing: how many there may be, and for how long.

A request whose head never ends holds a descriptor and a parser for ever, and a few thousand of them leave none for anybody else. So a
connection has some seconds to finish its first head, and at most a few hundred may be at that at once: the oldest of them makes room
for the next, since a good client's head arrives with its connection. But hundreds of good clients may come in one moment, all accepted
before the first of them is read: who came within the last two seconds stays, while there are no more than a thousand.

A connection that was answered may wait for its next request, half a head of it included, for KEPT_OPEN seconds (aiohttp ends it then),
and so may a thousand others; beyond that the one that has waited longest goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

FIRST_HEAD_WITHIN = 10.0
MOST_SILENT = 256
MOST_NEW = 1_024
GRACE = 2.0
KEPT_OPEN = 75.0
MOST_IDLE = 1_024


class Doorman:
    """Wraps the server's protocol factory; `heard` is told of each request."""

    def __init__(
        self, within: float = FIRST_HEAD_WITHIN, most: int = MOST_SILENT, idle: int = MOST_IDLE, new: int = MOST_NEW, grace: float = GRACE
    ) -> None:
        self._within = within
        self._most = most
        self._most_new = new
        self._grace = grace
        self._trimming = False
        self._most_idle = idle
        self._silent: dict[int, asyncio.Protocol] = {}
        self._since: dict[int, float] = {}
        self._idle: dict[int, asyncio.Protocol] = {}

    def wrap(self, factory: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        def admit() -> asyncio.Protocol:
            protocol, loop = factory(), asyncio.get_running_loop()
            self._silent[id(protocol)] = protocol
            self._since[id(protocol)] = loop.time()
            if len(self._silent) > self._most_new:
                self._close(next(iter(self._silent)))
            if len(self._silent) > self._most and not self._trimming:
                self._trimming = True
                loop.call_later(self._grace, self._trim, loop)
            loop.call_later(self._within, self._close, id(protocol), protocol)
            return protocol

        return admit

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        """The oldest go until no more than `most` are left, but for those that have just come."""
        self._trimming = False
        while len(self._silent) > self._most:
            oldest = next(iter(self._silent))
            wait = self._since[oldest] + self._grace - loop.time()
            if wait > 0:
                self._trimming = True
                loop.call_later(wait, self._trim, loop)
                return
            self._close(oldest)

    def heard(self, protocol: object) -> None:
        self._silent.pop(id(protocol), None)
        self._since.pop(id(protocol), None)
        self._idle.pop(id(protocol), None)

    def answered(self, protocol: asyncio.Protocol) -> None:
        """It waits for its next request, if it hasn't ended."""
        self._idle[id(protocol)] = protocol
        if len(self._idle) > self._most_idle:
            self._idle = {name: one for name, one in self._idle.items() if getattr(one, "transport", None) is not None}
        if len(self._idle) > self._most_idle:
            self._end(self._idle.pop(next(iter(self._idle))))

    def _close(self, name: int, only: asyncio.Protocol | None = None) -> None:
        """Ends a connection that hasn't said anything yet; `only`: if it is still that one, since ids come again."""
        kept = self._silent.get(name)
        if kept is None or (only is not None and kept is not only):
            return
        del self._silent[name], self._since[name]
        self._end(kept)

    @staticmethod
    def _end(protocol: asyncio.Protocol) -> None:
        transport = getattr(protocol, "transport", None)
        if transport is not None:
            transport.abort()


class GuardedRunner(web.AppRunner):
    """An `AppRunner` whose connections pass a doorman."""

    def __init__(self, app: web.Application, doorman: Doorman, **options: Any) -> None:
        super().__init__(app, **options)
        self._doorman = doorman

    @property
    def server(self) -> Any:
        found = super().server
        return None if found is None else self._doorman.wrap(found)


DOORMAN: web.AppKey[Doorman] = web.AppKey("doorman", Doorman)
