"""Repair: groups of which shards lie here are kept at n shards, with others' help and without a coordinator.

Every round the policy (`erasure/repair.py`) is shown what this node sees: who holds what, who is away since when, who says that it
repairs which group. What it answers is carried out: a claim goes into this node's Holding, a repair reads k shards, makes the
missing ones (`node/transfer/rebuild.py`) and puts them at new nodes, an alarm is logged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from erasure.durability import measured, shards_wanted
from erasure.presence import Presence
from erasure.repair import Alarm, Claim, Command, Drop, Repair, Repairer, Settings
from erasure.standing import Clocks, GroupView, standing
from node.keep_holdings import HoldingKeeper
from node.locate import KnownEncoding, Located, Locator
from node.repair_memory import RepairMemory
from node.repair_work import RepairWork
from node.sightings import Sightings
from node.store.interface import ShardKey
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol.errors import MfError
from protocol.ids import EncodingId, ModelId, PeerId, encoding_text, model_text

log = logging.getLogger(__name__)
ROUND = 60.0
SHORTEST_ROUND = 5.0
SAVE_EVERY = 300.0


@dataclass(frozen=True)
class Watched:
    """One encoding of which a shard lies here, as the policy is shown it."""

    located: Located
    group: int
    known: KnownEncoding
    view: GroupView


@dataclass(frozen=True)
class GroupState:
    """`survives`: how many more of those that answer may go; negative: it can't be read. `counted` shards have a holder not yet gone."""

    model: ModelId
    group: int
    survives: int
    counted: int
    n: int


@dataclass
class Counts:
    """Since the start. Bytes read and written for repairs."""

    repairs: int = 0
    failed: int = 0
    shards: int = 0
    read: int = 0
    written: int = 0
    alarms: int = 0


def settings_for(gone_after: float, bandwidth: float) -> Settings:
    """Rounds follow the long clock: where a node is gone after half a minute nobody waits a minute for the next look."""
    every = min(ROUND, max(SHORTEST_ROUND, gone_after / 6))
    clocks = Clocks(blink=min(60.0, gone_after))
    return Settings(bandwidth=bandwidth, round=every, settle=every / 2, linger=5 * every, retry=2 * every, clocks=clocks)


class Repairs:
    """`now` is a monotonic clock, `unix` the wall's; `rng` draws jitter."""

    def __init__(
        self,
        me: PeerId,
        swarm: Swarm,
        transfer: Transfer,
        locator: Locator,
        keeper: HoldingKeeper,
        work: RepairWork,
        memory: RepairMemory,
        executor: Executor,
        gone_after: float,
        bandwidth: float,
        now: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._me = me
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._keeper = keeper
        self._work = work
        self._memory = memory
        self._executor = executor
        self._now = now
        self._unix = unix
        self._rng = rng or random.Random()
        self.settings = settings_for(gone_after, bandwidth)
        self.presence = Presence(now(), gone_after)
        self.sightings = Sightings()
        self.policy = Repairer(me, self.settings)
        self.counts = Counts()
        self.groups: list[GroupState] = []
        """As seen in the last round."""
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._saved = -math.inf

    async def run(self) -> None:
        """A round every so often; ends when cancelled. A fault of one round is logged, the next tries again."""
        await self.remember()
        try:
            while True:
                await asyncio.sleep(self.settings.round)
                try:
                    await self.round()
                except MfError as error:
                    log.info("a round of repair was left out: %s", error)
                if self._now() - self._saved >= SAVE_EVERY:
                    await self.save()
        finally:
            await self.stop()

    async def remember(self) -> None:
        """What was saved before the restart."""
        sightings = await asyncio.get_running_loop().run_in_executor(self._executor, self._memory.load)
        self.sightings.restore(sightings, self.presence, self._now(), self._unix())

    async def save(self) -> None:
        self._saved = self._now()
        sightings = self.sightings.saved(self.presence, self._now(), self._unix())
        await asyncio.get_running_loop().run_in_executor(self._executor, self._memory.save, sightings)

    async def stop(self) -> None:
        """Ends what is under way and keeps what was seen."""
        await self.save()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def round(self) -> None:
        """Looks, asks the policy, obeys."""
        now = self._now()
        self._see_peers(now)
        watched = {entry.known.id: entry for entry in await self._watched(now)}
        self.sightings.keep_only(set(watched))
        views = [entry.view for entry in watched.values()]
        self.groups = [self._state(entry, now) for entry in watched.values()]
        for command in self.policy.plan(views, self.presence, self._claims(watched, now), now, self._rng):
            await self._obey(command, watched[EncodingId(command.group)])

    async def idle(self) -> None:
        """Returns when no repair is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # Looking.

    def _see_peers(self, now: float) -> None:
        self.presence.see(self._me, True, now)
        for view in self._swarm.peers():
            if view.peer != self._me:
                since = None if view.last_seen is None else now - max(0.0, self._unix() - view.last_seen)
                self.presence.see(view.peer, view.routable, now, since)

    async def _watched(self, now: float) -> list[Watched]:
        """The best of the encodings of every group of which a shard lies here."""
        lying: dict[ModelId, set[bytes]] = {}
        for info in await self._transfer.list_shards():
            lying.setdefault(info.model, set()).add(info.key.encoding)
        found: list[Watched] = []
        ups = self._ups(now)
        for model, encodings in lying.items():
            located = await self._locator.located_here(model)
            if located is None:
                continue
            await self._locator.refresh(located)
            for group, entries in located.encodings.items():
                best = self._best([known for known in entries if known.id not in located.blamed], now)
                if best is not None and best.id in encodings:
                    found.append(Watched(located, group, best, self._view(best, ups)))
        return found

    def _best(self, entries: list[KnownEncoding], now: float) -> KnownEncoding | None:
        """The encoding that bears most losses is kept up; the others of the group may wither."""
        for known in entries:
            self.sightings.see(known.id, self._swarm.holders(known.id), self.presence, now)
        return max(entries, key=lambda known: (len(self.sightings.holders(known.id)) - known.record.k, known.id), default=None)

    def _view(self, known: KnownEncoding, ups: list[float]) -> GroupView:
        record, roots = known.record, len(known.record.roots)
        wanted = shards_wanted(record.k, record.n, roots, len(ups), ups) if ups else record.n
        return GroupView(known.id, record.k, wanted, roots, record.shard_length(), self.sightings.holders(known.id))

    def _ups(self, now: float) -> list[float]:
        """Availability of this node and of each peer that lends storage, as measured: an encoding of more roots grows where it is low."""
        lending = [view.peer for view in self._swarm.peers() if view.record is not None and view.record.lend in ("storage", "both")]
        return [measured(*self.presence.up_and_seen(peer, now)) for peer in {self._me, *lending}]

    def _claims(self, watched: dict[EncodingId, Watched], now: float) -> dict[bytes, list[Claim]]:
        """Others' claims, in this node's time. Their clocks may be off, so none is believed for longer than a claim may last."""
        claims: dict[bytes, list[Claim]] = {}
        unix = self._unix()
        for model in {entry.located.model for entry in watched.values()}:
            for view in self._swarm.holdings(model):
                for repair in view.repairs:
                    if repair.encoding in watched and view.peer != self._me:
                        lasts = min(repair.expires - unix, self.settings.longest_claim)
                        claims.setdefault(repair.encoding, []).append(Claim(repair.encoding, view.peer, now + lasts))
        return claims

    def _state(self, entry: Watched, now: float) -> GroupState:
        view = entry.view
        stands = standing(view, self.presence, now, self.settings.bandwidth, self.settings.clocks)
        return GroupState(entry.located.model, entry.group, len(stands.present) - view.k, len(stands.counted), view.n)

    # Obeying.

    async def _obey(self, command: Command, entry: Watched) -> None:
        if isinstance(command, Claim):
            self._tell(command, entry)
        elif isinstance(command, Repair):
            self._tasks[command.group] = asyncio.create_task(self._repair(command, entry), name=f"repair {command.group.hex()[:16]}")
        elif isinstance(command, Drop):
            await self._transfer.drop_shard(ShardKey(entry.known.id, command.shard), "more than the group needs")
            self._keeper.changed(entry.located.model)
        elif isinstance(command, Alarm):
            self._alarm(command, entry)

    def _tell(self, claim: Claim, entry: Watched) -> None:
        expires = int(self._unix() + claim.expires - self._now())
        self._keeper.repairing(entry.located.model, claim.group, expires)

    async def _repair(self, order: Repair, entry: Watched) -> None:
        name = encoding_text(entry.known.id)
        log.info("repairing %s: %d shards", name, len(order.make), extra={"event": "repair_begun", "fields": {"encoding": name}})
        try:
            done = await self._work.restore(entry.located, entry.group, entry.known, order.make, self.sightings.holders(entry.known.id))
        except MfError as error:
            log.warning("a repair of %s failed: %s", name, error, extra={"event": "repair_failed", "fields": {"encoding": name}})
            self.counts.failed += 1
            self._tell(self.policy.failed(order.group, self._now(), self._rng), entry)
            return
        finally:
            self._tasks.pop(order.group, None)
        self.counts.repairs += 1
        self.counts.shards += len(done.placed)
        self.counts.read += done.read
        self.counts.written += done.written
        fields = {"encoding": name, "shards": len(done.placed), "wanted": len(order.make), "read": done.read, "written": done.written}
        log.info("repaired %s: %d shards placed", name, len(done.placed), extra={"event": "repaired", "fields": fields})
        whole = len(done.placed) == len(order.make)
        claim = self.policy.finished(order.group, self._now()) if whole else self.policy.failed(order.group, self._now(), self._rng)
        self._tell(claim, entry)

    def _alarm(self, alarm: Alarm, entry: Watched) -> None:
        self.counts.alarms += 1
        name = entry.located.manifest.groups[entry.group].name
        model = model_text(entry.located.model)
        fields = {"model": model, "group": name, "survives": alarm.survives, "chance": alarm.chance, "seconds": alarm.seconds}
        log.warning(
            "group %s of %s is in danger: a chance of %.2g that it is lost before it is repaired; "
            "it survives %d more losses, in the mean %.0f minutes",
            name,
            model,
            alarm.chance,
            alarm.survives,
            alarm.seconds / 60,
            extra={"event": "group_in_danger", "fields": fields},
        )
