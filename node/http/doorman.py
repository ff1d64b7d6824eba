"""Connections that open and say nothing: how many there may be, and for how long.

A request whose head never ends holds a descriptor and a parser for ever, and a few thousand of them leave none for anybody else. So a
connection has some seconds to finish its first head, and at most a few hundred may be at that at once: the oldest of them makes room
for the next, since a good client's head arrives with its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

FIRST_HEAD_WITHIN = 10.0
MOST_SILENT = 256


class Doorman:
    """Wraps the server's protocol factory; `heard` is told of each request."""

    def __init__(self, within: float = FIRST_HEAD_WITHIN, most: int = MOST_SILENT) -> None:
        self._within = within
        self._most = most
        self._silent: dict[int, asyncio.Protocol] = {}

    def wrap(self, factory: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        def admit() -> asyncio.Protocol:
            protocol = factory()
            self._silent[id(protocol)] = protocol
            if len(self._silent) > self._most:
                self._close(next(iter(self._silent)))
            asyncio.get_running_loop().call_later(self._within, self._close, id(protocol), protocol)
            return protocol

        return admit

    def heard(self, protocol: object) -> None:
        self._silent.pop(id(protocol), None)

    def _close(self, name: int, only: asyncio.Protocol | None = None) -> None:
        """Ends a connection that hasn't said anything yet; `only`: if it is still that one, since ids come again."""
        kept = self._silent.get(name)
        if kept is None or (only is not None and kept is not only):
            return
        del self._silent[name]
        transport = getattr(kept, "transport", None)
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
