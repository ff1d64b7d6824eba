"""Teams: identities with one name, at the node where they were made. What is shared with a team is shared with who is in it."""

from __future__ import annotations

import re
import sqlite3
import time

from node.accounts.database import Database
from protocol.errors import BadInput, Busy, Conflict, Forbidden, NotFound

MOST_MEMBERS = 128
MOST_EACH = 32
PREFIX = "team:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class Teams:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, who: str, name: str) -> None:
        if not _NAME.match(name):
            raise BadInput("a team's name has 1 to 64 letters, digits, dots, dashes and underscores", details={"param": "name"})

        def work(db: sqlite3.Connection) -> None:
            if db.execute("select count(*) from teams where owner = ?", (who,)).fetchone()[0] >= MOST_EACH:
                raise Busy(f"at most {MOST_EACH} teams each")
            db.execute("insert into teams (name, owner, created) values (?, ?, ?)", (name, who, time.time()))

        try:
            await self._database.run(work)
        except sqlite3.IntegrityError:
            raise Conflict(f"there is a team {name} here", details={"param": "name"}) from None

    async def mine(self, who: str) -> dict[str, list[bytes]]:
        rows = await self._database.rows("select name from teams where owner = ? order by name", who)
        return {row["name"]: await self.members(row["name"]) for row in rows}

    async def members(self, name: str) -> list[bytes]:
        """Their identities; `NotFound` for a team that isn't there."""
        if not await self._database.rows("select name from teams where name = ?", name):
            raise NotFound(f"there is no team {name[:64]!r} here")
        rows = await self._database.rows("select identity from members where team = ? order by identity", name)
        return [bytes(row["identity"]) for row in rows]

    async def add(self, who: str, name: str, identity: bytes) -> None:
        await self._own(who, name)

        def work(db: sqlite3.Connection) -> None:
            if db.execute("select count(*) from members where team = ?", (name,)).fetchone()[0] >= MOST_MEMBERS:
                raise Busy(f"a team has at most {MOST_MEMBERS} members")
            db.execute("insert or ignore into members (team, identity) values (?, ?)", (name, identity))

        await self._database.run(work)

    async def remove(self, who: str, name: str, identity: bytes) -> None:
        await self._own(who, name)
        query = "delete from members where team = ? and identity = ?"
        if not await self._database.run(lambda db: db.execute(query, (name, identity)).rowcount):
            raise NotFound("that identity isn't in the team")

    async def drop(self, who: str, name: str) -> None:
        await self._own(who, name)
        await self._database.run(lambda db: db.execute("delete from teams where name = ?", (name,)))

    async def of_member(self, identity: bytes) -> list[str]:
        """Names of the teams that it is in."""
        rows = await self._database.rows("select team from members where identity = ? order by team", identity)
        return [row["team"] for row in rows]

    async def forget(self, who: str, identity: bytes) -> None:
        """Its own teams are no more, and it is in none."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("delete from teams where owner = ?", (who,))
            db.execute("delete from members where identity = ?", (identity,))

        await self._database.run(work)

    async def _own(self, who: str, name: str) -> None:
        rows = await self._database.rows("select owner from teams where name = ?", name)
        if not rows:
            raise NotFound(f"there is no team {name[:64]!r} here")
        if rows[0]["owner"] != who:
            raise Forbidden("the team is somebody else's")
