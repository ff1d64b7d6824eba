"""Shards move to nodes that have joined: what erasure/rebalance.py says, at a bounded rate.

Every holder moves its own shards alone: to nodes that joined, by itself, once they have stayed for a while; and when its owner asks,
to all that have clearly more of their room left than this one. Where that isn't known, a node counts that holds nothing of the model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from erasure.placement import Candidate
from erasure.rebalance import GroupHeld, Move, Pace, moves
from node.hand_over import HandOver
from node.locate import KnownEncoding
from node.owner import Notify
from node.placement_view import PlacementView
from node.store.interface import ShardInfo
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol.errors import MfError
from protocol.ids import ModelId, PeerId

log = logging.getLogger(__name__)
LOOK = 60.0
STAYED = 600.0
"""Seconds a node that joined must have been there before shards are moved to it unasked."""
ROOMIER = 0.1
"""By how much of what it lends a newcomer must be emptier than this node."""


@dataclass
class Moved:
    planned: int = 0
    moved: int = 0
    refused: int = 0
    bytes: int = 0
    takers: set[PeerId] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Planned:
    move: Move
    info: ShardInfo
    known: KnownEncoding


class Rebalancer:
    def __init__(
        self, view: PlacementView, swarm: Swarm, transfer: Transfer, hands: HandOver, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._view = view
        self._swarm = swarm
        self._transfer = transfer
        self._hands = hands
        self._clock = clock
        self._first_seen: dict[str, float] = {}
        self._settled: set[str] = set()
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Ends when cancelled. Whoever is there after the first minute isn't a newcomer."""
        await asyncio.sleep(LOOK)
        self._settled = {candidate.peer for candidate in self._view.candidates()}
        while True:
            await asyncio.sleep(LOOK)
            await self.round()

    async def round(self) -> None:
        """Moves what those who have stayed should hold. A fault is logged: what wasn't moved stays where it is."""
        stayed = self.stayed()
        if not stayed:
            return
        self._settled |= stayed
        try:
            moved = await self.rebalance(_quiet, stayed)
            log.info("moved %d shards to nodes that joined", moved.moved, extra={"event": "rebalanced", "fields": {"bytes": moved.bytes}})
        except MfError as error:
            log.info("shards couldn't be moved now: %s", error)

    def stayed(self) -> set[str]:
        """Nodes that joined after the start and have stayed, but weren't served yet."""
        now = self._clock()
        here = {candidate.peer for candidate in self._view.candidates() if candidate.weight > 0}
        self._first_seen = {peer: self._first_seen.get(peer, now) for peer in here - self._settled}
        return {peer for peer, since in self._first_seen.items() if now - since >= STAYED}

    async def rebalance(self, notify: Notify, only: set[str] | None = None, pace: Pace | None = None) -> Moved:
        """Moves what emptier nodes, or of `only` those who joined, should hold instead of this node."""
        async with self._busy:
            return await self._move_all(await self._plan(only), notify, pace or Pace())

    async def _plan(self, only: set[str] | None) -> list[_Planned]:
        planned: list[_Planned] = []
        for info in await self._transfer.list_shards():
            try:
                known = await self._hands.known(info.key.encoding)
            except MfError as error:
                log.info("a shard stays: %s", error)
                continue
            move = self._move_of(info, known, self._newcomers(info.model, only))
            if move is not None:
                planned.append(_Planned(move, info, known))
        return planned

    def _move_of(self, info: ShardInfo, known: KnownEncoding, newcomers: set[str]) -> Move | None:
        me, record = self._view.me.peer, known.record
        held: dict[int, str] = dict(self._hands.holders(known.id))
        if not newcomers or info.key.shard in held:
            return None  # held twice already: nothing is gained
        held[info.key.shard] = me
        group = GroupHeld(record.group, record.k, record.n, record.shard_length(), held, info.model)
        return next(iter(moves(self._view.placement(), [group], newcomers, me)), None)

    def _newcomers(self, model: ModelId, only: set[str] | None) -> set[str]:
        holding = {view.peer for view in self._swarm.holdings(model)}
        mine = self._view.me.room

        def emptier(candidate: Candidate) -> bool:
            if candidate.room is None or mine is None:
                return only is not None or candidate.peer not in holding
            return candidate.room >= mine + ROOMIER

        others = [candidate for candidate in self._view.candidates() if candidate.peer != self._view.me.peer and candidate.weight > 0]
        return {candidate.peer for candidate in others if (only is None or candidate.peer in only) and emptier(candidate)}

    async def _move_all(self, planned: list[_Planned], notify: Notify, pace: Pace) -> Moved:
        moved = Moved(planned=len(planned))
        for one in planned:
            await self._paced(pace, one.move.shard_bytes)
            await self._move(one, moved)
            await notify({"event": "progress", "stage": "rebalance", "done": moved.moved + moved.refused, "total": moved.planned})
        return moved

    async def _paced(self, pace: Pace, size: int) -> None:
        wait = pace.wait(size, self._clock())
        while wait > 0:
            await asyncio.sleep(wait)
            wait = pace.wait(size, self._clock())

    async def _move(self, one: _Planned, moved: Moved) -> None:
        to = PeerId(one.move.to)
        try:
            await self._hands.move(one.info, one.known, to)
        except MfError as error:
            log.info("%s took no shard: %s", to, error)
            moved.refused += 1
            moved.refusals[to] = error.message
            return
        moved.moved += 1
        moved.bytes += one.info.bytes
        moved.takers.add(to)


async def _quiet(event: dict[str, object]) -> None:
    """Nobody watches."""
