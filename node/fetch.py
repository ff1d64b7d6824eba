"""Fetch: a model's files, bit-identical, from the swarm into a folder.

Groups are assembled a few ahead of the one being written; each is verified before a byte of it reaches a file, and each file's own
digest is checked before it gets its name. Memory is bounded by the groups in flight.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from node.assemble import Assembler, GroupBytes
from node.locate import Located, Locator
from node.owner import Notify
from node.restore import FileWriter
from node.swarm.interface import Swarm
from protocol.ids import model_text

log = logging.getLogger(__name__)
AHEAD = 3


class Fetcher:
    def __init__(self, swarm: Swarm, locator: Locator, assembler: Assembler, executor: Executor) -> None:
        self._swarm = swarm
        self._locator = locator
        self._assembler = assembler
        self._executor = executor

    async def fetch(self, name: str, directory: Path, notify: Notify) -> dict[str, Any]:
        """{"model_id", "path", "files", "bytes", "seconds"}; nothing is left behind on failure."""
        started = time.monotonic()
        located = await self._locator.locate(self._swarm.resolve(name))
        loop = asyncio.get_running_loop()
        writer = FileWriter(located.manifest, directory)
        await loop.run_in_executor(self._executor, writer.open)
        try:
            await self._write_groups(located, writer, notify)
            await loop.run_in_executor(self._executor, writer.finish)
        except BaseException:
            await loop.run_in_executor(self._executor, writer.abort)
            raise
        return {
            "model_id": model_text(located.model),
            "path": str(directory),
            "files": len(located.manifest.files),
            "bytes": located.manifest.size(),
            "seconds": round(time.monotonic() - started, 3),
        }

    async def _write_groups(self, located: Located, writer: FileWriter, notify: Notify) -> None:
        total, done = sum(group.length for group in located.manifest.groups), 0
        limit = asyncio.Semaphore(AHEAD)
        tasks = [asyncio.create_task(self._one(located, group, limit)) for group in range(len(located.manifest.groups))]
        try:
            for group, task in enumerate(tasks):
                assembled = await task
                try:
                    await asyncio.get_running_loop().run_in_executor(self._executor, writer.write_group, group, assembled.fd)
                finally:
                    assembled.close()
                    limit.release()
                done += assembled.length
                await notify({"event": "progress", "stage": "fetch", "done": done, "total": total})
        finally:
            for task in tasks:
                task.cancel()
            for left in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(left, GroupBytes):
                    left.close()

    async def _one(self, located: Located, group: int, limit: asyncio.Semaphore) -> GroupBytes:
        """Holds a place of `limit` until the writer has written the group."""
        await limit.acquire()
        try:
            return await self._assembler.group(located, group)
        except BaseException:
            limit.release()
            raise
