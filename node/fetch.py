"""Fetch: a model's files, bit-identical, from the swarm into a folder.

Groups are decoded straight to their places in hidden files, a few at a time, so that each byte is written once. What arrives is checked
against its leaves; what is written, against the digest of each whole file, before that file gets its name. That digest
covers every tensor, so tensors aren't hashed one by one as well. Where a file comes out wrong, its groups are fetched again by the
way that compares each with the manifest, which finds the signer who lied. Memory is bounded by the groups in flight.

A fetch that was killed, or ended because holders were away, is taken up by the next into the same folder: groups in place aren't fetched
again, one under way goes on at its mark. One that its asker stopped leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from node.assemble import Assembler, Places
from node.fetch_groups import fetch_groups
from node.locate import Located, Locator, check_open
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
        """{"model_id", "path", "files", "bytes", "seconds", "resumed", "received"}, and "groups" where some were asked for. Of `bytes`,
        `resumed` are those that a fetch before had left in place; `received` are bytes over the network. On failure nothing is left behind,
        but for what an `Unavailable` stopped: that goes on next time.

        `files` names the only files wanted, `groups` groups whose plain bytes are wanted instead of files (see `node/fetch_groups.py`).
        """
        started = time.monotonic()
        located = await self._locator.locate(self._swarm.resolve(name))
        check_open(located)
        wanted = [located.manifest.group_index(group) for group in groups]
        only = file_numbers(located.manifest, files) if files else set() if groups else None
        told: dict[str, Any] = {"model_id": model_text(located.model), "path": str(directory), "files": 0, "bytes": 0}
        told |= {"resumed": 0, "received": 0}
        if only is None or only:
            told |= await self._fetch_files(located, directory, only, notify)
            entries = [entry for number, entry in enumerate(located.manifest.files) if only is None or number in only]
            told |= {"files": len(entries), "bytes": sum(entry.length for entry in entries)}
        if wanted:
            told["groups"], received = await fetch_groups(self._assembler, self._executor, located, wanted, directory, notify)
            told["received"] += received
            told["bytes"] += sum(group["bytes"] for group in told["groups"])
        return told | {"seconds": round(time.monotonic() - started, 3)}

    async def _fetch_files(self, located: Located, directory: Path, only: set[int] | None, notify: Notify) -> dict[str, int]:
        loop = asyncio.get_running_loop()
        writer = FileWriter(located.manifest, directory, located.model, only)
        opening = loop.run_in_executor(self._executor, writer.open)
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:  # the thread goes on: what it makes is removed behind it
            await _to_its_end(opening)
            await _to_its_end(loop.run_in_executor(self._executor, writer.abort))
            raise
        try:
            resumed = sum(map(writer.in_place, writer.wanted()))
            received = await self._write_groups(located, writer, notify)
            received += await self._mend(located, writer)
            await self._finish(writer)
        except Unavailable as error:
            if any(map(writer.in_place, writer.wanted())):
                error.hint = f"{error.hint + '; ' if error.hint else ''}what has come is kept in {directory}: fetch there again to go on"
                await _to_its_end(loop.run_in_executor(self._executor, writer.leave))
            await _to_its_end(loop.run_in_executor(self._executor, writer.abort))
            raise
        except BaseException:
            await _to_its_end(loop.run_in_executor(self._executor, writer.abort))
            raise
        return {"resumed": resumed, "received": received}

    async def _finish(self, writer: FileWriter) -> None:
        """A thread can't be stopped: what it names for an asker who stopped it is taken back."""
        loop = asyncio.get_running_loop()
        finishing = loop.run_in_executor(self._executor, writer.finish)
        try:
            await asyncio.shield(finishing)
        except asyncio.CancelledError:
            await _to_its_end(finishing)
            await _to_its_end(loop.run_in_executor(self._executor, writer.take_back))
            raise

    async def _write_groups(self, located: Located, writer: FileWriter, notify: Notify) -> int:
        """Bytes over the network."""
        lengths = {group: located.manifest.groups[group].length for group in writer.wanted()}
        total, received = sum(lengths.values()), 0
        missing = [group for group, length in lengths.items() if writer.in_place(group) < length]
        done = total - sum(lengths[group] for group in missing)
        limit = asyncio.Semaphore(AHEAD)
        self._assembler.expect(located, missing)

        async def one(group: int) -> int:
            async with limit:
                straight, received = await self._get(located, writer, group)
            if straight:
                # Hashed while the next ones are on their way.
                await asyncio.get_running_loop().run_in_executor(self._executor, writer.written, group)
            return received

        tasks = [asyncio.create_task(one(group)) for group in missing]
        try:
            for group, task in zip(missing, tasks, strict=True):
                received += await task
                done += lengths[group]
                await notify({"event": "progress", "stage": "fetch", "done": done, "total": total})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return received

    async def _get(self, located: Located, writer: FileWriter, group: int) -> tuple[bool, int]:
        """Writes the group to its places: whether its files are still to be hashed, and bytes over the network."""
        spans, fds = writer.targets(group)
        if len(fds) <= MOST_FILES:
            try:
                received = await self._assembler.straight(located, group, Places(spans, fds, writer.mark(group)))
                writer.complete(group)
                return True, received
            except Unavailable as error:
                log.info("trying the group's other encodings too: %s", error)
        return False, await self._checked(located, writer, group)

    async def _mend(self, located: Located, writer: FileWriter) -> int:
        """Fetches again what makes a file wrong: some encoding decoded to other bytes than the manifest's, or what was left in place by
        a fetch before isn't what its marks said."""
        loop, received = asyncio.get_running_loop(), 0
        wrong = await loop.run_in_executor(self._executor, writer.wrong_files)
        for group in await loop.run_in_executor(self._executor, writer.wrong_groups, wrong) if wrong else ():
            received += await self._checked(located, writer, group)
        return received

    async def _checked(self, located: Located, writer: FileWriter, group: int) -> int:
        assembled = await self._assembler.group(located, group)
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, writer.write_group, group, assembled.fd)
        finally:
            assembled.close()
        return assembled.received


def file_numbers(manifest: Manifest, names: Sequence[str]) -> set[int]:
    """Numbers of the files named; `NotFound` names one that the model doesn't have."""
    numbers = {entry.name: number for number, entry in enumerate(manifest.files)}
    if unknown := [name for name in names if name not in numbers]:
        near = [entry.name for entry in manifest.files][:20]
        raise NotFound(f"the model has no file {unknown[0][:64]!r}", hint="one of " + ", ".join(near), details={"candidates": near})
    return {numbers[name] for name in names}


async def _to_its_end(work: asyncio.Future[Any]) -> None:
    """Waits for what a thread does however often it is cancelled meanwhile: who leaves is told of by a word, and by the end of the line."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if (error := work.exception()) is not None:
        log.info("what a fetch was stopped in: %s", error)
