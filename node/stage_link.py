"""The entry's view of one stage: a session stream that says how the stage is, and what the entry concludes from it.

A stage is lost when its stream ends, when it says "failed" or "leaving", or when it is silent longer than SILENCE although it
should say "alive" twice a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.network.interface import Stream
from protocol.errors import MfError, PeerFault, Unavailable, error_from_wire
from protocol.framing import pack, unpack
from protocol.ids import PeerId
from protocol.messages import Reroute, SessionEvent, StageSpec

SILENCE = 1.6
MOST_SECONDS = 3_600.0
"""That a stage is believed to have spent on loading or in line."""
LINE_MOST = 1 << 16
"""The farthest place in line that a stage is believed."""


class StageLost(Unavailable):
    """A stage of the running pipeline can't go on. `peer` is to be replaced; `cause` is what it said itself, if it did.

    `accuser` is the stage that found fault with it; `leaving`: it asked for it, and runs until it is replaced.
    """

    code = "stage_lost"

    def __init__(
        self, peer: PeerId, why: str, cause: MfError | None = None, *, accuser: PeerId | None = None, leaving: bool = False
    ) -> None:
        super().__init__(f"stage at {peer}: {why}", details={"peer": peer})
        self.peer = peer
        self.cause = cause
        self.accuser = accuser
        self.leaving = leaving


class StageLink:
    """`proven` once a token has come through it: only then it has all the positions that were sent."""

    def __init__(
        self,
        spec: StageSpec,
        stream: Stream,
        lost: Callable[[StageLost], None],
        heard: Callable[[StageSpec, SessionEvent], None] = lambda spec, event: None,
        asked: int = 0,
    ) -> None:
        """`asked`: so many positions it may have from an earlier session."""
        self.spec = spec
        self.peer = PeerId(spec.peer)
        self._stream = stream
        self._tell_lost = lost
        self._tell_heard = heard
        self.heard = self.moved = asyncio.get_running_loop().time()
        self._asked = asked
        self.position = self.held = 0
        self.line: int | None = None
        """Its place among those who wait for room there."""
        self.busy = False
        self.proven = False
        self.dead = False
        self.epoch = -1
        self.ready = asyncio.Event()
        self.rerouted = asyncio.Event()
        self.timings: dict[str, float] = {}
        self.pace = 0.0, 0.0
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {spec.peer}")

    async def reroute(self, change: Reroute) -> None:
        self.rerouted.clear()
        self.epoch = change.epoch
        try:
            await self._stream.send(pack(change), SILENCE)
        except MfError as error:
            self._lose(error.message)

    async def close(self) -> None:
        self.dead = True
        self._stream.reset()
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self) -> None:
        while not self.dead:
            try:
                event = unpack(await self._stream.receive(SILENCE), SessionEvent, f"session event from {self.peer}")
            except MfError as error:
                self._lose(error.message)
                return
            self.heard = asyncio.get_running_loop().time()
            try:
                self._take_line(event)
                self._tell_heard(self.spec, event)
            except MfError as error:
                self._lose(error.message)
                return
            self._heard(event)

    def _heard(self, event: SessionEvent) -> None:
        if event.blames is not None and event.blames != self.peer:
            self._blamed(event, PeerId(event.blames))
        elif event.kind == "failed":
            cause = error_from_wire(event.error or {})
            self._lose(cause.message, cause)
        elif event.kind == "leaving":
            self._tell_lost(StageLost(self.peer, "its node is stopping", leaving=True))
        elif event.kind == "ready":
            self.timings = {name: seconds for name, seconds in (event.timings or {}).items() if 0 <= seconds <= MOST_SECONDS}
            self._take_held(event.position or 0)
            self.ready.set()
        elif event.kind == "rerouted" and event.epoch == self.epoch:
            self.rerouted.set()
        elif event.position is not None:
            if event.position != self.position:
                self.moved = self.heard
            self.position, self.busy = event.position, event.busy
            if event.pace is not None and len(event.pace) == 2:
                self.pace = event.pace[0], event.pace[1]

    def _blamed(self, event: SessionEvent, peer: PeerId) -> None:
        """It fails for what the other did, or only can't bring it a step: then it stays as it is, to go on with whoever comes instead."""
        cause = error_from_wire(event.error or {})
        self.dead = self.dead or event.kind == "failed"
        self._tell_lost(StageLost(peer, f"{cause.message} (says {self.peer})", accuser=self.peer))

    def _take_held(self, positions: int) -> None:
        if not 0 <= positions <= self._asked:
            self._lose(f"says it has {positions} positions of an earlier session, {self._asked} were asked for")
        else:
            self.held = positions

    def _take_line(self, event: SessionEvent) -> None:
        if event.line is not None and not 1 <= event.line <= LINE_MOST:
            raise PeerFault(f"{self.peer} says it is {event.line} in line, 1 to {LINE_MOST} are allowed")
        self.line = event.line

    def _lose(self, why: str, cause: MfError | None = None) -> None:
        if not self.dead:
            self.dead = True
            self._tell_lost(StageLost(self.peer, why, cause))
