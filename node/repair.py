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
from concurrent.futures import Executor
from dataclasses import dataclass

from erasure.repair import Alarm, Claim, Command, Drop, Repair, Repairer, Settings
from erasure.standing import Clocks, standing
from node.keep_holdings import HoldingKeeper
from node.repair_memory import RepairMemory
from node.repair_sight import RepairSight, Watched
from node.repair_work import RepairWork
from node.store.interface import ShardKey
from node.transfer.remote import Transfer
from protocol.errors import MfError
from protocol.ids import EncodingId, ModelId, encoding_text, model_text

log = logging.getLogger(__name__)
ROUND = 60.0
SHORTEST_ROUND = 5.0
SAVE_EVERY = 300.0


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
    """`rng` draws jitter."""

    def __init__(
        self,
        sight: RepairSight,
        transfer: Transfer,
        keeper: HoldingKeeper,
        work: RepairWork,
        memory: RepairMemory,
        executor: Executor,
        settings: Settings,
        rng: random.Random | None = None,
    ) -> None:
        self._sight = sight
        self._transfer = transfer
        self._keeper = keeper
        self._work = work
        self._memory = memory
        self._executor = executor
        self._settings = settings
        self._rng = rng or random.Random()
        self._policy = Repairer(sight.me, settings)
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._saved = -math.inf
        self.counts = Counts()
        self.groups: list[GroupState] = []
        """As seen in the last round."""

    async def run(self) -> None:
        """A round every so often; ends when cancelled. A fault of one round is logged, the next tries again."""
        await self.remember()
        try:
            while True:
                await asyncio.sleep(self._settings.round)
                try:
                    await self.round()
                except MfError as error:
                    log.info("a round of repair was left out: %s", error)
                if self._sight.now() - self._saved >= SAVE_EVERY:
                    await self.save()
        finally:
            await self.stop()

    async def remember(self) -> None:
        """What was saved before the restart."""
        sightings = await asyncio.get_running_loop().run_in_executor(self._executor, self._memory.load)
        self._sight.restore(sightings)

    async def save(self) -> None:
        self._saved = self._sight.now()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._memory.save, self._sight.saved())

    async def stop(self) -> None:
        """Ends what is under way and keeps what was seen."""
        await self.save()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def round(self) -> None:
        """Looks, asks the policy, obeys."""
        now = self._sight.now()
        watched = await self._sight.look(now)
        self.groups = [self._state(entry, now) for entry in watched.values()]
        claims = self._sight.claims(watched, now, self._settings.longest_claim)
        views = [entry.view for entry in watched.values()]
        for command in self._policy.plan(views, self._sight.presence, claims, now, self._rng):
            await self._obey(command, watched[EncodingId(command.group)])

    async def idle(self) -> None:
        """Returns when no repair is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _state(self, entry: Watched, now: float) -> GroupState:
        view = entry.view
        stands = standing(view, self._sight.presence, now, self._settings.bandwidth, self._settings.clocks)
        return GroupState(entry.located.model, entry.group, len(stands.present) - view.k, len(stands.counted), view.n)

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
        expires = int(self._sight.unix() + claim.expires - self._sight.now())
        self._keeper.repairing(entry.located.model, claim.group, expires)

    async def _repair(self, order: Repair, entry: Watched) -> None:
        name = encoding_text(entry.known.id)
        log.info("repairing %s: %d shards", name, len(order.make), extra={"event": "repair_begun", "fields": {"encoding": name}})
        try:
            done = await self._work.restore(entry.located, entry.group, entry.known, order.make, self._sight.holders(entry.known.id))
        except Exception as error:  # boundary: whatever ends a repair, the policy must hear that it ended
            if not isinstance(error, MfError):
                log.exception("a repair of %s broke", name)
            log.warning("a repair of %s failed: %s", name, error, extra={"event": "repair_failed", "fields": {"encoding": name}})
            self.counts.failed += 1
            self._tell(self._policy.failed(order.group, self._sight.now(), self._rng), entry)
            return
        finally:
            self._tasks.pop(order.group, None)
        self.counts.repairs += 1
        self.counts.shards += len(done.placed)
        self.counts.read += done.read
        self.counts.written += done.written
        fields = {"encoding": name, "shards": len(done.placed), "wanted": len(order.make), "read": done.read, "written": done.written}
        log.info("repaired %s: %d shards placed", name, len(done.placed), extra={"event": "repaired", "fields": fields})
        now = self._sight.now()
        whole = len(done.placed) == len(order.make)
        claim = self._policy.finished(order.group, now) if whole else self._policy.failed(order.group, now, self._rng)
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
