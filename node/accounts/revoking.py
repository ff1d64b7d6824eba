"""What this home has revoked: durable here first, then told to the swarm, until everything that could carry it has expired."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from node.accounts.database import Database
from protocol import limits
from protocol.ids import PeerId
from protocol.records import Revoked

_INSERT = "insert into revoked (id, until) values (?, ?) on conflict (id) do update set until = max(until, excluded.until)"


class Spreading(Protocol):
    """What accounts need of the swarm."""

    async def put_revocations(self, revoked: Sequence[Revoked], before: int | None = None) -> None: ...

    def revoked(self, home: PeerId, ids: Sequence[bytes], issued: int) -> bool: ...

    def trusted(self, peer: PeerId) -> bool: ...


class Revoking:
    def __init__(self, database: Database, swarm: Spreading) -> None:
        self._database = database
        self._swarm = swarm
        self._until: dict[bytes, int] = {}
        self._before: int | None = None

    async def load(self) -> None:
        """What still counts from before a restart, told to the swarm again."""
        now = int(time.time())
        await self._database.run(lambda db: db.execute("delete from revoked where until < ?", (now,)))
        self._until = {bytes(row["id"]): int(row["until"]) for row in await self._database.rows("select id, until from revoked")}
        if self._until:
            await self._tell()

    def revoked(self, ids: Sequence[bytes]) -> bool:
        return any(one in self._until for one in ids)

    async def revoke(self, ids: Sequence[bytes], lifetime: int) -> None:
        """Refused here when it returns, and told to the peers. `lifetime`: how long a link with one of these ids may still live."""
        until = int(time.time()) + lifetime
        await self._database.run(lambda db: db.executemany(_INSERT, [(one, until) for one in ids]))
        self._until |= {one: max(until, self._until.get(one, 0)) for one in ids}
        await self._tell()

    async def _tell(self) -> None:
        now = int(time.time())
        self._until = {one: until for one, until in self._until.items() if until > now}
        latest = sorted(self._until.items(), key=lambda item: item[1])[-limits.MAX_REVOCATIONS :]
        if len(latest) < len(self._until):
            # More than a record holds: who still has a token of an hour ago must ask for a new one.
            self._before = now
        await self._swarm.put_revocations([Revoked(one, until) for one, until in latest], self._before)
