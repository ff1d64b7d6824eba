"""The transfer process's care for what lies here: leases of what was read, collection, and reading all of it again in turn.

Renewals wait for the next look and are written once: a shard that is read a thousand times a day costs one change a day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Protocol

from node.store.interface import ShardInfo, ShardKey, ShardStore
from node.store.scrub import following, pause, verify
from protocol.errors import MfError
from protocol.ids import ModelId, encoding_text

log = logging.getLogger(__name__)
LOOK_EVERY = 3600.0
"""Seconds between two collections."""
IDLE = 60.0
"""Seconds before an empty or failing store is scrubbed again."""


class Reads(Protocol):
    def taken(self) -> set[ShardKey]:
        """The shards read since the last call."""


class Upkeep:
    """`in_files` runs blocking work in an executor; `gone` is told of each model that lost a shard; `rate` bytes/s, 0: no scrubbing."""

    def __init__(
        self,
        store: ShardStore,
        reads: Reads,
        in_files: Callable[..., Awaitable[Any]],
        gone: Callable[[ModelId], Awaitable[None]],
        rate: int,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._store, self._reads, self._in_files, self._gone = store, reads, in_files, gone
        self._rate, self._clock, self._rng = rate, clock, rng
        self._at: ShardKey | None = None
        self._begun = False

    async def collect_for_ever(self) -> None:
        """A fault of one look is logged; the next tries again."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except MfError as error:
                log.warning("collecting failed: %s", error, extra={"event": "collect_failed"})

    async def look(self) -> None:
        """Renews the leases of what was read, then collects."""
        await self._in_files(self._store.renew, self._reads.taken(), self._clock())
        done = await self._in_files(self._store.collect, self._clock())
        if not (done.shards or done.blobs):
            return
        fields = {"shards": len(done.shards), "blobs": done.blobs, "bytes": done.bytes}
        log.info("collected what nobody keeps any more", extra={"event": "collected", "fields": fields})
        for model in {info.model for info in done.shards}:
            await self._gone(model)

    async def scrub_for_ever(self) -> None:
        while self._rate:
            try:
                wait = await self.scrub_next()
            except MfError as error:
                log.warning("scrubbing failed: %s", error, extra={"event": "scrub_failed"})
                wait = IDLE
            await asyncio.sleep(wait)

    async def scrub_next(self) -> float:
        """Reads the shard whose turn it is; the seconds to wait before the next."""
        infos: list[ShardInfo] = await self._in_files(self._store.list_shards)
        if not self._begun and infos:
            self._begun = True
            self._at = self._rng.choice(infos).key
        info = following(infos, self._at)
        if info is None:
            return IDLE
        self._at = info.key
        reason = await self._in_files(verify, self._store, info.key)
        if reason and reason != "not held":
            fields = {"shard": f"{encoding_text(info.key.encoding)}/{info.key.shard}", "reason": reason}
            log.warning("a shard went bad on the disk and was dropped", extra={"event": "scrub_found", "fields": fields})
            await self._gone(info.model)
        return pause(max(info.bytes, 1), sum(entry.bytes for entry in infos), self._rate)
