"""Drives `liveness.py`: one ticker, a ping to whoever is due, and the verdicts it comes to."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from node.swarm.link import Link
from node.swarm.liveness import Liveness, Verdict
from node.swarm.supervisor import Supervisor
from node.swarm.wire import Nothing, Probe, Probed
from protocol.errors import MfError
from protocol.ids import PeerId

log = logging.getLogger(__name__)
TICK = 0.25
_HELPERS = 2

LinkTo = Callable[[PeerId, float], Awaitable[Link]]
"""(peer, seconds) -> the open stream to it, made when there is none; raises an MfError."""


class Changed(Protocol):
    def __call__(self, peer: PeerId, routable: bool, reason: str) -> None: ...


class Heartbeat:
    def __init__(
        self,
        liveness: Liveness,
        link_to: LinkTo,
        changed: Changed,
        supervisor: Supervisor,
        monotonic: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._liveness = liveness
        self._link_to = link_to
        self._changed = changed
        self._supervisor = supervisor
        self._monotonic = monotonic
        self._rng = rng
        self._busy: set[PeerId] = set()

    async def run(self) -> None:
        while True:
            due = self._monotonic() + TICK
            await asyncio.sleep(TICK)
            now = self._monotonic()
            self._liveness.woke(now - due, now)
            for peer in self._liveness.due(now):
                if peer not in self._busy:
                    self._supervisor.spawn(self._check(peer), f"ping of {peer}")

    def heard(self, peer: PeerId, asked: float, took: float) -> None:
        """An answer came on a link, in time or late."""
        if self._liveness.answered(peer, asked, asked + took):
            self._changed(peer, True, "answers")

    def suspect(self, peer: PeerId, reason: str) -> None:
        if self._liveness.suspect(peer, self._monotonic()):
            self._changed(peer, False, f"suspected: {reason}")
        self._supervisor.spawn(self._ping(peer), f"probe of {peer}")

    async def answers(self, peer: PeerId) -> bool | None:
        """Another node asks about `peer`: does it answer this one? None: not connected."""
        pulse = self._liveness.pulse(peer)
        if pulse is None or not pulse.connected:
            return None
        try:
            link = await self._link_to(peer, self._liveness.deadlines.helper)
            await link.ask("ping", Nothing(), Nothing, self._liveness.deadlines.helper)
        except MfError:
            return False
        return True

    async def _check(self, peer: PeerId) -> None:
        self._busy.add(peer)
        try:
            verdict = Verdict.AGAIN
            while verdict is Verdict.AGAIN:
                verdict = await self._ping(peer)
                if verdict is Verdict.ASK_OTHERS:
                    verdict = await self._ask_others(peer)
            if verdict is Verdict.UNROUTABLE and self._liveness.give_up(peer):
                self._changed(peer, False, "doesn't answer")
        finally:
            self._busy.discard(peer)

    async def _ping(self, peer: PeerId) -> Verdict:
        asked, deadline = self._monotonic(), self._liveness.deadline(peer)
        try:
            async with asyncio.timeout(deadline):
                link = await self._link_to(peer, deadline)
                await link.ask("ping", Nothing(), Nothing, deadline)
            return Verdict.NOTHING
        except (MfError, TimeoutError) as error:
            log.debug("ping of %s: %s", peer, error)
            return self._liveness.missed(peer, asked, self._monotonic())

    async def _ask_others(self, peer: PeerId) -> Verdict:
        helpers = list(self._liveness.helpers(peer))
        asked = self._monotonic()
        chosen = self._rng.sample(helpers, min(_HELPERS, len(helpers)))
        said = await asyncio.gather(*(self._ask_helper(helper, peer) for helper in chosen))
        return self._liveness.others_said(peer, any(said), asked)

    async def _ask_helper(self, helper: PeerId, about: PeerId) -> bool:
        deadline = self._liveness.deadlines.indirect
        try:
            async with asyncio.timeout(deadline):
                link = await self._link_to(helper, deadline)
                return bool((await link.ask("probe", Probe(peer=about), Probed, deadline)).alive)
        except (MfError, TimeoutError):
            return False
