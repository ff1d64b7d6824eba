"""Fetch: a model's files, bit-identical, from the swarm into a folder.

Groups are decoded straight to their places in hidden files, a few at a time, so that each byte is written once. What arrives is checked
against its leaves; what is written, against the digest of each whole file, before that file gets its name. That digest
covers every tensor, so tensors aren't hashed one by one as well. Where a file comes out wrong, its groups are fetched again by the
way that compares each with the manifest, which finds the signer who lied. Memory is bounded by the groups in flight.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from node.assemble import Assembler
from node.fetch_groups import fetch_groups
from node.locate import Located, Locator
from node.owner import Notify
from node.restore import FileWriter
from node.swarm.interface import Swarm
from protocol.errors import NotFound, Unavailable
from protocol.ids import model_text
from protocol.manifest import Manifest

log = logging.getLogger(__name__)
AHEAD = 12
MOST_FILES = 32
"""Of one group: descriptors that one call to the transfer process carries."""


class Fetcher:
    def __init__(self, swarm: Swarm, locator: Locator, assembler: Assembler, executor: Executor) -> None:
        self._swarm = swarm
        self._locator = locator
        self._assembler = assembler
        self._executor = executor

    async def fetch(
        self, name: str, directory: Path, notify: Notify, files: Sequence[str] = (), groups: Sequence[str] = ()
    ) -> dict[str, Any]:
        """{"model_id", "path", "files", "bytes", "seconds"}, and "groups" where some were asked for; nothing is left behind on failure.

        `files` names the only files wanted, `groups` groups whose plain bytes are wanted instead of files (see `node/fetch_groups.py`).
        """
        started = time.monotonic()
        located = await self._locator.locate(self._swarm.resolve(name))
        wanted = [located.manifest.group_index(group) for group in groups]
        only = file_numbers(located.manifest, files) if files else set() if groups else None
        told: dict[str, Any] = {"model_id": model_text(located.model), "path": str(directory), "files": 0, "bytes": 0}
        if only is None or only:
            await self._fetch_files(located, directory, only, notify)
            entries = [entry for number, entry in enumerate(located.manifest.files) if only is None or number in only]
            told |= {"files": len(entries), "bytes": sum(entry.length for entry in entries)}
        if wanted:
            told["groups"] = await fetch_groups(self._assembler, self._executor, located, wanted, directory, notify)
            told["bytes"] += sum(group["bytes"] for group in told["groups"])
        return told | {"seconds": round(time.monotonic() - started, 3)}

    async def _fetch_files(self, located: Located, directory: Path, only: set[int] | None, notify: Notify) -> None:
        loop = asyncio.get_running_loop()
        writer = FileWriter(located.manifest, directory, only)
        await loop.run_in_executor(self._executor, writer.open)
        try:
            await self._write_groups(located, writer, notify)
            await self._mend(located, writer)
            await loop.run_in_executor(self._executor, writer.finish)
        except BaseException:
            await loop.run_in_executor(self._executor, writer.abort)
            raise

    async def _write_groups(self, located: Located, writer: FileWriter, notify: Notify) -> None:
        wanted = writer.wanted()
        total, done = sum(located.manifest.groups[group].length for group in wanted), 0
        limit = asyncio.Semaphore(AHEAD)
        self._assembler.expect(located, wanted)

        async def one(group: int) -> int:
            async with limit:
                straight = await self._get(located, writer, group)
            if straight:
                # Hashed while the next ones are on their way.
                await asyncio.get_running_loop().run_in_executor(self._executor, writer.written, group)
            return located.manifest.groups[group].length

        tasks = [asyncio.create_task(one(group)) for group in wanted]
        try:
            for task in tasks:
                done += await task
                await notify({"event": "progress", "stage": "fetch", "done": done, "total": total})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _get(self, located: Located, writer: FileWriter, group: int) -> bool:
        """Writes the group to its places; True when its files are still to be hashed."""
        spans, fds = writer.targets(group)
        if len(fds) <= MOST_FILES:
            try:
                await self._assembler.straight(located, group, spans, fds)
                return True
            except Unavailable as error:
                log.info("trying the group's other encodings too: %s", error)
        await self._checked(located, writer, group)
        return False

    async def _mend(self, located: Located, writer: FileWriter) -> None:
        """Fetches again what makes a file wrong: some encoding decoded to other bytes than the manifest's."""
        wrong = await asyncio.get_running_loop().run_in_executor(self._executor, writer.wrong_files)
        for group in writer.groups_of(wrong):
            await self._checked(located, writer, group)

    async def _checked(self, located: Located, writer: FileWriter, group: int) -> None:
        assembled = await self._assembler.group(located, group)
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, writer.write_group, group, assembled.fd)
        finally:
            assembled.close()


def file_numbers(manifest: Manifest, names: Sequence[str]) -> set[int]:
    """Numbers of the files named; `NotFound` names one that the model doesn't have."""
    numbers = {entry.name: number for number, entry in enumerate(manifest.files)}
    if unknown := [name for name in names if name not in numbers]:
        near = [entry.name for entry in manifest.files][:20]
        raise NotFound(f"the model has no file {unknown[0][:64]!r}", hint="one of " + ", ".join(near), details={"candidates": near})
    return {numbers[name] for name in names}
