"""Drain: everything that lies here gets another home before this node leaves.

Each shard goes to the node that would keep it if this one weren't there; a refusal leads to the next best. What another node holds as
well is dropped once that node has confirmed it. Meanwhile nothing new is taken. Where shards find no home the node stays, with them,
and says who refused and why: a drain either ends with nothing left here, or with nothing lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from node.hand_over import HandOver
from node.locate import KnownEncoding
from node.owner import Notify
from node.placement_view import PlacementView
from node.put_desk import PutDesk
from node.store.interface import ShardInfo
from node.transfer.remote import Transfer
from protocol.errors import Conflict, MfError, StorageFull
from protocol.ids import PeerId

log = logging.getLogger(__name__)
AT_ONCE = 3
Tell = Callable[[], Awaitable[None]]


@dataclass
class Account:
    """What became of the shards: `moved` and their `bytes`, `spared` since another node had them, `refusals` by peer."""

    total: int
    moved: int = 0
    bytes: int = 0
    spared: int = 0
    stuck: int = 0
    takers: set[PeerId] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.moved + self.spared + self.stuck


class Drainer:
    """`tell_space` spreads what this node lends now: nothing while it leaves."""

    def __init__(self, view: PlacementView, transfer: Transfer, puts: PutDesk, hands: HandOver, tell_space: Tell) -> None:
        self._view = view
        self._transfer = transfer
        self._puts = puts
        self._hands = hands
        self._tell_space = tell_space

    async def drain(self, notify: Notify) -> dict[str, Any]:
        """The command's result, see docs/CLI.md; nothing lies here then. `StorageFull` where something found no home."""
        if self._puts.leaving:
            raise Conflict("this node is being drained already")
        started, me = time.monotonic(), self._view.me
        self._puts.leaving, self._view.me = True, replace(me, weight=0.0)
        try:
            await self._tell_space()
            account = await self._empty(notify)
        except BaseException:
            self._puts.leaving, self._view.me = False, me
            await self._tell_space()
            raise
        return {
            "handed_over": account.moved,
            "bytes": account.bytes,
            "held_elsewhere": account.spared,
            "peers": len(account.takers),
            "seconds": round(time.monotonic() - started, 3),
        }

    async def _empty(self, notify: Notify) -> Account:
        shards = await self._transfer.list_shards()
        if shards and not any(candidate.weight > 0 for candidate in self._view.candidates()):
            raise StorageFull(
                f"nobody can take the {len(shards)} shards that lie here: no peer that lends storage is reachable",
                hint="start other nodes and join them; `mf-node stop` leaves without handing anything over",
            )
        account, limit = Account(len(shards)), asyncio.Semaphore(AT_ONCE)

        async def one(info: ShardInfo) -> None:
            async with limit:
                await self._settle(info, account)
                await notify({"event": "progress", "stage": "drain", "done": account.done, "total": account.total})

        async with asyncio.TaskGroup() as group:
            for info in shards:
                group.create_task(one(info))
        await self._hands.tell(shards)
        if account.stuck:
            why = "" if account.refusals else ": every other node has a shard of the same groups already, or lends nothing"
            raise StorageFull(
                f"{account.stuck} of {account.total} shards found no other home{why}; they stay here, and so does this node",
                hint="give other nodes more --storage, or let more of them join",
                details={"refusals": account.refusals, "left": account.stuck},
            )
        return account

    async def _settle(self, info: ShardInfo, account: Account) -> None:
        try:
            known = await self._hands.known(info.key.encoding)
            if await self._spare(info):
                account.spared += 1
                return
            taker = await self._place(info, known, account)
        except MfError as error:
            log.warning("a shard couldn't be handed over: %s", error)
            taker = None
        if taker is None:
            account.stuck += 1
            return
        account.takers.add(taker)
        account.moved += 1
        account.bytes += info.bytes

    async def _spare(self, info: ShardInfo) -> bool:
        """Whether another node holds this very shard, by its own word now; then it is dropped here."""
        other = self._hands.holders(info.key.encoding).get(info.key.shard)
        if other is None or not await self._hands.lies_at(other, info.key):
            return False
        await self._hands.drop(info, f"held by {other} too")
        return True

    async def _place(self, info: ShardInfo, known: KnownEncoding, account: Account) -> PeerId | None:
        """Who has it now; None when all who could have refused."""
        record, shard = known.record, info.key.shard
        refused: set[str] = {self._view.me.peer}
        held = {other: peer for other, peer in self._hands.holders(known.id).items() if other != shard}
        n = max(record.n, shard + 1)
        while True:
            placement = self._view.placement()
            pairs = placement.choose(record.group, n, k=record.k, model=info.model, held=held, without=refused, shards=[shard])
            if not pairs:
                return None
            peer = PeerId(pairs[0][1])
            try:
                await self._hands.move(info, known, peer)
                return peer
            except MfError as error:
                log.info("%s took no shard: %s", peer, error)
                account.refusals[peer] = error.message
                refused.add(peer)
