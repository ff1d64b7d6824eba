"""Saves the swarm's state soon after it changed, on a thread of its own: a disk that stalls must not stall the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import msgspec

from node.swarm.archive import Archive
from node.swarm.history import History
from node.swarm.state import MAX_SAVED_CARDS, MAX_SAVED_PEERS, SwarmState
from node.swarm.trust import Trust
from protocol.ids import PeerId
from protocol.ticket import TicketPeer

log = logging.getLogger(__name__)
_DURABLE_WITHIN = 5.0


class Keeper:
    def __init__(
        self,
        state: SwarmState,
        save: Callable[[SwarmState], None] | None,
        trust: Trust,
        archive: Archive,
        own: PeerId,
        history: History,
        thread: Executor | None = None,
    ) -> None:
        self._state = state
        self._save = save
        self._trust = trust
        self._archive = archive
        self._own = own
        self._history = history
        self._touched = False
        self._thread = thread or ThreadPoolExecutor(1, "swarm-state")

    def saved_cards(self) -> list[bytes]:
        return list(self._state.cards)

    def saved_peers(self) -> list[tuple[PeerId, list[str]]]:
        return [(PeerId(entry.peer), list(entry.addresses)) for entry in self._state.peers if entry.peer != self._own]

    def touch(self) -> None:
        self._touched = True

    def save_now(self) -> None:
        """Durable when it returns: for what the owner has just decided."""
        self._submit().result(_DURABLE_WITHIN)

    async def save_if_touched(self) -> None:
        if self._touched:
            self._touched = False
            try:
                await asyncio.wrap_future(self._submit())
            except OSError as error:
                self._touched = True
                log.warning("the swarm's state wasn't saved: %s", error)

    async def stop(self) -> None:
        """Saves what has changed, within a second."""
        self.touch()
        try:
            async with asyncio.timeout(1.0):
                await self.save_if_touched()
        except TimeoutError:
            log.warning("the swarm's state wasn't saved within a second: the disk is too slow")
        self._thread.shutdown(wait=False)

    def _submit(self) -> Future[None]:
        state = self._snapshot()
        return self._thread.submit(self._save or (lambda _state: None), state)

    def _snapshot(self) -> SwarmState:
        state = msgspec.structs.replace(self._state)
        self._trust.into(state)
        met = [kept for kept in self._archive.peers.all() if kept.signer != self._own and self._archive.peers.met(kept.signer)]
        met.sort(key=lambda kept: (not self._trust.member(kept.signer), -kept.record.sequence))
        if met:
            state.peers = [TicketPeer(peer=kept.signer, addresses=list(kept.record.addresses)) for kept in met[:MAX_SAVED_PEERS]]
        catalog = self._archive.catalog
        cards = [kept for signer in catalog.publishers() if self._trust.believed(signer) for kept in catalog.of(signer)]
        cards.sort(key=lambda kept: (kept.signer != self._own, -kept.record.sequence))
        state.cards = [kept.envelope for kept in cards[:MAX_SAVED_CARDS]]
        state.began, state.known = self._history.began, self._history.entries()
        return state
