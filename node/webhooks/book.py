"""Webhooks and what is still to deliver to them, in the accounts' file: a notice outlives the node's restart."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.accounts.database import Database
from protocol.errors import Busy, NotFound

MOST_EACH = 8
MOST_WAITING = 4_096
"""Notices of everybody that aren't delivered yet: beyond, the oldest is given up."""
EVENTS = ("upload.finished", "upload.failed", "batch.finished")


@dataclass(frozen=True)
class Webhook:
    """`secret` signs what is sent; it is shown once, when it is made."""

    id: str
    who: str
    url: str
    events: tuple[str, ...]
    secret: str
    created: float


@dataclass(frozen=True)
class Notice:
    """One event on its way to one webhook: `body` JSON as it is signed, `due` when it is tried next, `tries` so far."""

    id: str
    webhook: Webhook
    event: str
    body: bytes
    due: float
    tries: int


class WebhookBook:
    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    async def add(self, who: str, url: str, events: list[str]) -> Webhook:
        """`Busy` with eight already."""
        made = Webhook(f"whk_{secrets.token_hex(10)}", who, url, tuple(events), f"whsec_{secrets.token_urlsafe(32)}", self._now())

        def work(db: sqlite3.Connection) -> None:
            if db.execute("select count(*) from webhooks where who = ?", (who,)).fetchone()[0] >= MOST_EACH:
                raise Busy(f"at most {MOST_EACH} webhooks each", hint="delete one")
            row = (made.id, who, url, " ".join(made.events), made.secret, made.created)
            db.execute("insert into webhooks (id, who, url, events, secret, created) values (?, ?, ?, ?, ?, ?)", row)

        await self._database.run(work)
        return made

    async def of(self, who: str) -> list[Webhook]:
        rows = await self._database.rows("select * from webhooks where who = ? order by created", who)
        return [_webhook(row) for row in rows]

    async def drop(self, who: str, webhook: str) -> None:
        """With what is still to deliver to it."""
        query = "delete from webhooks where who = ? and id = ?"
        if not await self._database.run(lambda db: db.execute(query, (who, webhook)).rowcount):
            raise NotFound("there is no such webhook of yours")

    async def forget(self, who: str) -> None:
        """All of `who`'s, with what is still to deliver."""
        await self._database.run(lambda db: db.execute("delete from webhooks where who = ?", (who,)))

    async def enter(self, who: str, event: str, body: bytes) -> int:
        """To deliver to each of `who`'s webhooks that wants such events; to how many."""
        wanted = [webhook for webhook in await self.of(who) if event in webhook.events]
        rows = [(f"dlv_{secrets.token_hex(10)}", webhook.id, event, body, self._now()) for webhook in wanted]

        def work(db: sqlite3.Connection) -> None:
            db.executemany("insert into notices (id, webhook, event, body, due, tries) values (?, ?, ?, ?, ?, 0)", rows)
            old = "select id from notices order by due desc limit -1 offset ?"
            db.execute(f"delete from notices where id in ({old})", (MOST_WAITING,))

        if rows:
            await self._database.run(work)
        return len(rows)

    async def due(self, most: int) -> list[Notice]:
        query = (
            "select n.id as notice, n.event, n.body, n.due, n.tries, w.* from notices n join webhooks w on w.id = n.webhook "
            "where n.due <= ? order by n.due limit ?"
        )
        rows = await self._database.rows(query, self._now(), most)
        return [Notice(row["notice"], _webhook(row), row["event"], bytes(row["body"]), row["due"], row["tries"]) for row in rows]

    async def next_due(self) -> float | None:
        (row,) = await self._database.rows("select min(due) as due from notices")
        return None if row["due"] is None else float(row["due"])

    async def done(self, notice: Notice) -> None:
        await self._database.run(lambda db: db.execute("delete from notices where id = ?", (notice.id,)))

    async def again(self, notice: Notice, due: float) -> None:
        query = "update notices set due = ?, tries = tries + 1 where id = ?"
        await self._database.run(lambda db: db.execute(query, (due, notice.id)))


def _webhook(row: sqlite3.Row) -> Webhook:
    return Webhook(row["id"], row["who"], row["url"], tuple(row["events"].split()), row["secret"], row["created"])
