"""Shards open for reading, kept so for a moment: a shard that many ask for, or ask for by Ranges, is looked up and opened once.

Looking up and opening one takes as long as sending a MiB of it. What the store drops or replaces is seen at the next asking, and
nothing stays open for longer than `KEPT_FOR` after its last reader left, so that the disk gets its room back.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from node.store.interface import ShardKey, ShardReader, ShardStore
from node.transfer.finishing import to_the_end

MOST = 256
KEPT_FOR = 10.0


@dataclass
class OpenShard:
    """`leaves`: its leaf list. `users` readers have it now; `idle_since` is of the loop's clock."""

    key: ShardKey
    reader: ShardReader
    leaves: bytes
    users: int = 0
    idle_since: float = 0.0
    kept: bool = True


class OpenShards:
    def __init__(self, store: ShardStore, executor: Executor) -> None:
        self._store, self._executor = store, executor
        self._open: dict[ShardKey, OpenShard] = {}
        self._removals = 0
        self._read: set[ShardKey] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def take(self, key: ShardKey) -> OpenShard | None:
        """The shard, `give_back` it; None when it isn't held."""
        if self._store.removals != self._removals:
            self._removals = self._store.removals
            self.close()
        shard = self._open.get(key)
        if shard is None:
            shard = await to_the_end(asyncio.get_running_loop().run_in_executor(self._executor, self._begin, key))
        if shard is None:
            return None
        shard.users += 1
        self._read.add(key)
        self._keep(shard)
        return shard

    def taken(self) -> set[ShardKey]:
        """The shards taken since the last call, each once."""
        read, self._read = self._read, set()
        return read

    def _begin(self, key: ShardKey) -> OpenShard | None:
        reader = self._store.open_shard(key)
        if reader is None:
            return None
        try:
            return OpenShard(key, reader, reader.leaves())
        except BaseException:
            reader.close()
            raise

    def _keep(self, shard: OpenShard) -> None:
        """Two that opened it at once: the second's stays its own."""
        shard.kept = self._open.setdefault(shard.key, shard) is shard
        self._open[shard.key] = self._open.pop(shard.key)
        if len(self._open) > MOST:
            self._let_go(next(iter(self._open.values())))

    def give_back(self, shard: OpenShard) -> None:
        shard.users -= 1
        if not shard.kept and not shard.users:
            shard.reader.close()
        loop = asyncio.get_running_loop()
        shard.idle_since = loop.time()
        if self._sweep is None:
            self._sweep = loop.call_later(KEPT_FOR, self._close_idle)

    def _let_go(self, shard: OpenShard) -> None:
        del self._open[shard.key]
        shard.kept = False
        if not shard.users:
            shard.reader.close()

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        for shard in [shard for shard in self._open.values() if not shard.users and loop.time() - shard.idle_since >= KEPT_FOR]:
            self._let_go(shard)
        self._sweep = loop.call_later(KEPT_FOR, self._close_idle) if self._open else None

    def close(self) -> None:
        """Lets go of all; who reads one now may read on."""
        for shard in list(self._open.values()):
            self._let_go(shard)
