"""Who used which model how much on which day: figures alone. Counted in memory, written every few seconds and at the end."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from typing import Any

from node.accounts.allowance import Windows
from node.accounts.database import Database
from protocol.errors import MfError

log = logging.getLogger(__name__)
EVERY = 5.0
KEPT_DAYS = 400
_ADD = (
    "insert into usage (who, day, model, requests, prompt, completion) values (?, ?, ?, ?, ?, ?) on conflict (who, day, model) do update "
    "set requests = requests + excluded.requests, prompt = prompt + excluded.prompt, completion = completion + excluded.completion"
)

Key = tuple[str, str, str]


class UsageBook:
    def __init__(self, database: Database, windows: Windows) -> None:
        self._database = database
        self._windows = windows
        self._fresh: dict[Key, list[int]] = {}

    async def load(self) -> None:
        """Forgets what is over a year old; the month's tokens count on after a restart."""
        now = time.time()
        oldest, month = _day(now - KEPT_DAYS * 86_400), time.strftime("%Y-%m", time.gmtime(now))
        await self._database.run(lambda db: db.execute("delete from usage where day < ?", (oldest,)))
        query = "select who, sum(prompt + completion) as tokens from usage where day >= ? and model = '' group by who"
        for row in await self._database.rows(query, f"{month}-01"):
            self._windows.restore(row["who"], row["tokens"], now)

    def add(self, who: str, subject: str, model: str, prompt: int, completion: int) -> None:
        """One reply: under who asked and the model, and under the subject whose allowance it used (model "")."""
        day = _day(time.time())
        for key in ((who, day, model), (subject, day, "")):
            entry = self._fresh.setdefault(key, [0, 0, 0])
            entry[0] += 1
            entry[1] += prompt
            entry[2] += completion

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.flush()
            except (MfError, sqlite3.Error) as error:
                log.warning("usage wasn't written: %s", error, extra={"event": "usage_unwritten"})

    async def flush(self) -> None:
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, {}
        try:
            await self._database.run(lambda db: db.executemany(_ADD, [(*key, *counts) for key, counts in fresh.items()]))
        except BaseException:
            for key, counts in fresh.items():
                self._fresh[key] = [a + b for a, b in zip(counts, self._fresh.get(key, [0, 0, 0]), strict=True)]
            raise

    async def days(self, who: str, first: str, last: str) -> list[dict[str, Any]]:
        """[{"date", "model", "requests", "prompt_tokens", "completion_tokens"}] by day and model, first and last included."""
        await self.flush()
        query = (
            "select day, model, requests, prompt, completion from usage where who = ? and day between ? and ? and model != '' order by 1, 2"
        )
        return [
            {
                "date": row["day"],
                "model": row["model"],
                "requests": row["requests"],
                "prompt_tokens": row["prompt"],
                "completion_tokens": row["completion"],
            }
            for row in await self._database.rows(query, who, first, last)
        ]

    async def totals(self) -> dict[str, dict[str, int]]:
        """By model: requests and tokens of everybody together."""
        await self.flush()
        query = "select model, sum(requests) r, sum(prompt) p, sum(completion) c from usage where model != '' group by model"
        rows = await self._database.rows(query)
        return {row["model"]: {"requests": row["r"], "prompt_tokens": row["p"], "completion_tokens": row["c"]} for row in rows}

    async def forget(self, who: str) -> None:
        await self.flush()
        await self._database.run(lambda db: db.execute("delete from usage where who in (?, ?)", (who, f"account:{who}")))


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
