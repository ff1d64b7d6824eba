"""The stage side of a pipeline (`/mf/session/1`): load layers, keep a session's sequence, tell the entry how it goes.

An entry opens a stream per stage and session. While the stage loads it says "loading", and its place in line where it waits for room (as
long as the entry would have it wait, else it is refused as busy), then "ready"; from then on it says "alive"
twice a second and how far it is, so that the entry tells a slow computation from a frozen node without guessing at speeds. Steps
arrive another way (node/steps.py, node/stage_session.py). The entry may reroute the session when another stage is replaced. The session
ends when the entry ends its stream, whatever the reason, and its room is free within one step. A node that stops says "leaving" and
gives its entries a moment to go on elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from node.lanes import Lanes
from node.locate import Locator
from node.network.interface import Network, Stream, StreamClosed
from node.stage_parts import StageParts
from node.stage_room import StageRoom
from node.stage_session import StageSession, located_for
from node.statements import Seal
from node.step_log import LogRoom
from node.steps import Steps
from node.traffic import counting, current
from node.worker import Worker
from protocol.errors import Busy, Forbidden, MfError
from protocol.framing import pack, unpack
from protocol.ids import PeerId
from protocol.messages import OpenSession, Reroute, SessionEvent

log = logging.getLogger(__name__)
HEARTBEAT = 0.5
LEAVING = 2.0
"""Seconds that a node which stops waits for its sessions to go on elsewhere."""


class StageServer:
    def __init__(
        self,
        network: Network,
        steps: Steps,
        locator: Locator,
        room: StageRoom,
        worker: Worker,
        lends_compute: bool,
        lanes: Lanes | None = None,
    ) -> None:
        """`lanes`: how the worker sends on by itself; None: all goes by this node."""
        self._parts = StageParts(network.peer_id, steps, locator, room, worker, LogRoom(), lanes=lanes)
        self.figures = self._parts.figures
        self._lends = lends_compute
        self._streams: dict[Stream, OpenSession] = {}
        self._leaving = False
        self._empty = asyncio.Event()

    @property
    def seal(self) -> Seal | None:
        """Signs what stages computed, for audits; None: nothing is said."""
        return self._parts.seal

    @seal.setter
    def seal(self, seal: Seal | None) -> None:
        self._parts.seal = seal

    def prefer(self, trusted: Callable[[PeerId], bool]) -> None:
        """Sessions of these peers go before strangers'."""
        self._parts.trusted = trusted

    async def handle(self, stream: Stream) -> None:
        """One session of a remote entry."""
        try:
            request = unpack(await stream.receive(10.0), OpenSession, f"session from {stream.peer}")
            if request.entry != stream.peer:
                raise Forbidden("only a session's entry may open it")
            if not self._lends:
                raise Forbidden("this node lends no compute")
        except StreamClosed:
            return
        except MfError as error:
            await stream.send(pack(SessionEvent(kind="failed", error=error.to_wire())))
            return
        with counting():
            await self.serve(request, stream)

    async def serve(self, request: OpenSession, stream: Stream) -> None:
        """Runs the session until the entry's stream ends; a fault is told to the entry, then the session is over."""
        try:
            if self._leaving:
                raise Busy("this node is stopping")
            session = StageSession(self._parts, request)
        except MfError as error:
            await _tell_failure(stream, error, None)
            return
        self._streams[stream] = request
        self._note()
        work = asyncio.create_task(self._prepare(request, session) if request.prepare else session.run())
        tasks = [asyncio.create_task(self._beat(stream, session)), work, asyncio.create_task(self._control(stream, session))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not work.cancelled() and work.exception() is not None:
                await _tell_failure(stream, work.exception(), session)
            elif work.done():
                await stream.send(pack(SessionEvent(kind="ready", timings=session.timings)))
        finally:
            del self._streams[stream]
            self._note()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await stream.close()

    async def leave(self, within: float = LEAVING) -> None:
        """Takes no new sessions, and asks the entries of those that run to replace this node; returns when they have or time is up."""
        self._leaving = True
        self._note()
        for stream in list(self._streams):
            try:
                await stream.send(pack(SessionEvent(kind="leaving")), 0.5)
            except MfError as error:
                log.debug("an entry wasn't told that this node leaves: %s", error)
        try:
            async with asyncio.timeout(within):
                await self._empty.wait()
        except TimeoutError:
            log.info("%d sessions of other nodes end with this node", self._others())

    def _others(self) -> int:
        """Sessions of other nodes."""
        return sum(request.entry != self._parts.me for request in self._streams.values())

    def _note(self) -> None:
        if self._others():
            self._empty.clear()
        else:
            self._empty.set()

    async def prepare_own(self, request: OpenSession) -> None:
        """Loads a stage ahead on this node itself."""
        await self._prepare(request, StageSession(self._parts, request))

    async def _prepare(self, request: OpenSession, session: StageSession) -> None:
        """Loads the layers, so that a stage that has to step in finds them in memory."""
        located = await located_for(self._parts, request)
        session.timings = await self._parts.room.prepare(located, session.spec.first, session.spec.end, request.precision)

    async def _beat(self, stream: Stream, session: StageSession) -> None:
        """ "loading" until ready, then "ready" once and "alive" ever after."""
        told, traffic = False, current() if self._streams[stream].entry != self._parts.me else None  # an entry counts its own stage itself
        while True:
            if session.ready.is_set() and not told:
                told = True
                await stream.send(pack(SessionEvent(kind="ready", timings=session.timings, position=session.position or None)))
            else:
                trouble = session.trouble()
                event = SessionEvent(
                    kind="alive" if told else "loading",
                    timings=(self.figures.own.told(time.monotonic()) or None) if told else None,
                    position=session.position,
                    busy=session.busy,
                    pace=session.pace or None,
                    prints=session.statements.take() or None,
                    line=session.line,
                    moved=[traffic.sent, traffic.received] if told and traffic is not None else None,
                    blames=trouble[0] if trouble is not None else None,
                    error=trouble[1].to_wire() if trouble is not None else None,
                )
                await stream.send(pack(event))
            if told:
                session.check(asyncio.get_running_loop().time())
                await _set_within(session.troubled, HEARTBEAT)
            else:
                await _set_within(session.ready, HEARTBEAT)

    async def _control(self, stream: Stream, session: StageSession) -> None:
        """What the entry says while the session runs; ends when it ends the stream."""
        while True:
            try:
                change = unpack(await stream.receive(3_600.0), Reroute, f"route from {stream.peer}")
                session.reroute(change)
                await stream.send(pack(SessionEvent(kind="rerouted", epoch=change.epoch)))
            except StreamClosed:
                return
            except MfError as error:
                await _tell_failure(stream, error, None)
                return


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _tell_failure(stream: Stream, error: BaseException | None, session: StageSession | None) -> None:
    if not isinstance(error, MfError):
        log.error("a session failed", exc_info=error)
        error = MfError(f"the stage failed: {type(error).__name__}")
    blames = session.blames if session is not None else None
    try:
        await stream.send(pack(SessionEvent(kind="failed", error=error.to_wire(), blames=blames)))
    except MfError as gone:
        log.info("the entry left before it could be told of a failure: %s", gone)
