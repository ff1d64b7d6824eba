"""Groups assembled for this node's worker, kept on its disk: the next load, also after a restart, fetches nothing.

A file per group under `assembled/`, in a room of its own beside the shards', bounded by what the predictor says is worth keeping
(node/cache/predictor.py). The files are a cache and nothing more: written without syncing, checked against the manifest each time one
is used, dropped where a byte differs. Whoever has mapped one keeps it while it is dropped. What was asked for before and will
be soon, by its hours, is assembled ahead, slowly.

Rejected: keeping the descriptors that were handed to the worker (a memfd is memory, and an unlinked file goes with the process).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

from node.assemble import Assembler, GroupBytes, mismatch
from node.cache.byte_cache import ByteCache
from node.cache.predictor import LOOK, Predictor, load_habits, save_habits
from node.data_dir import write_durably
from node.locate import Located, Locator
from node.store.room import default_reserve
from node.transfer.finishing import to_the_end
from protocol import limits
from protocol.errors import BadInput, MfError
from protocol.ids import ModelId, model_from, model_text

T = TypeVar("T")
log = logging.getLogger(__name__)
FOLDER, HABITS = "assembled", "habits.msgpack"
BUDGET = 4e6
"""Bytes a second that assembling ahead may take, on average over a look."""
SAVE_EVERY = 3_600.0
_NAME = re.compile(r"(mfm1[a-z2-7]+)\.([0-9]{1,5})")
_STEP = 8 * limits.MIB
_HABITS_MOST = 8 * limits.MIB


class AssembledCache:
    """Gives groups as an `Assembler` does. `open` before use, `close` at the end; `limit` bytes, 0 keeps nothing."""

    def __init__(
        self, assembler: Assembler, locator: Locator, executor: Executor, data_dir: Path, limit: int, now: Callable[[], float] = time.time
    ) -> None:
        self._assembler = assembler
        self._locator = locator
        self._executor = executor
        self._folder = data_dir / FOLDER
        self._now = now
        self._predictor = Predictor()
        self.cache = ByteCache(limit, self._predictor)
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._changed: Callable[[ModelId], None] = lambda model: None
        self._opened = False

    async def open(self) -> None:
        """Finds what an earlier run kept."""
        await self._in_files(self._scan)
        self._opened = True

    async def close(self) -> None:
        for task in self._keeping.values():
            task.cancel()
        await asyncio.gather(*self._keeping.values(), return_exceptions=True)
        if self._opened:
            await self._save()

    def on_change(self, changed: Callable[[ModelId], None]) -> None:
        """`changed` is called with each model of which another group lies here whole, or one less."""
        self._changed = changed

    def whole(self, model: ModelId) -> list[int]:
        """Groups of the model that lie here whole."""
        prefix = f"{model_text(model)}."
        return sorted(_parsed(key)[1] for key in self.cache if key.startswith(prefix) and key not in self._keeping)

    async def lying(self, located: Located, group: int) -> GroupBytes | None:
        """The group from this disk, verified; the descriptor is the caller's. None where it doesn't lie here."""
        key = _key(located, group)
        return await self._kept(located, group, key) if key in self.cache and key not in self._keeping else None

    async def group(self, located: Located, group: int) -> GroupBytes:
        """As `Assembler.group`: verified bytes whose descriptor is the caller's."""
        key, length = _key(located, group), located.manifest.groups[group].length
        if self.cache.ask(key, length, self._now()):
            kept = await self._kept(located, group, key)
            if kept is not None:
                return kept
        made = await self._assembler.group(located, group)
        self._keep_later(key, made)
        return made

    def used(self, located: Located, groups: Sequence[int]) -> None:
        """They serve from the worker's memory: as good as asked for."""
        for group in groups:
            self._predictor.asked(_key(located, group), located.manifest.groups[group].length, self._now())

    async def forget(self, model: ModelId) -> None:
        """Nothing of the model stays, and it isn't assembled ahead."""
        prefix = f"{model_text(model)}."
        for key, task in list(self._keeping.items()):
            if key.startswith(prefix):
                await asyncio.wait([task])
        mine = [key for key in self.cache if key.startswith(prefix)]
        for key in mine:
            self.cache.drop(key)
        for habit in self._predictor.habits():
            if habit.key.startswith(prefix):
                self._predictor.forget(habit.key)
        await self._in_files(self._unlink, mine)

    async def run(self) -> None:
        """Assembles ahead, looking every LOOK seconds; ends when cancelled."""
        saved = self._now()
        while True:
            await asyncio.sleep(LOOK)
            await self.load_ahead()
            if self._now() - saved >= SAVE_EVERY:
                saved = self._now()
                await self._save()

    async def load_ahead(self) -> int:
        """One look; groups assembled. A fault leaves one out: nobody has asked for it yet."""
        loaded = 0
        for key, size in self._predictor.wanted(self.cache.held(), self.cache.limit, int(LOOK * BUDGET), self._now()):
            model, number = _parsed(key)
            try:
                located = await self._locator.located_here(model)
                if located is None or number >= len(located.manifest.groups):
                    continue
                made = await self._assembler.group(located, number)
            except MfError as error:
                log.info("a group wasn't loaded ahead: %s", error)
                continue
            self._keep_later(key, made)
            made.close()
            loaded += 1
            log.info("loaded a group ahead", extra={"event": "loaded_ahead", "fields": {"bytes": size}})
        return loaded

    async def settled(self) -> None:
        """Until what is being written now lies on the disk."""
        await asyncio.gather(*self._keeping.values(), return_exceptions=True)

    async def _kept(self, located: Located, group: int, key: str) -> GroupBytes | None:
        """The file's bytes, compared with the manifest; None, and no file any more, where they aren't the group's."""
        length = located.manifest.groups[group].length
        found = await self._in_files(_open_whole, self._folder / key, length)
        if found is not None:
            made = GroupBytes(group, found, length)
            try:
                if await self._in_files(mismatch, located.manifest, group, found) is None:
                    return made
            except BaseException:
                made.close()
                raise
            made.close()
        log.warning("a group kept on the disk isn't what it was; it is assembled anew", extra={"event": "assembled_lost"})
        self.cache.drop(key)
        await self._in_files(self._unlink, [key])
        return None

    def _keep_later(self, key: str, made: GroupBytes) -> None:
        """Writes it while the worker loads it; whoever waits for the group doesn't wait for that."""
        if key in self.cache or key in self._keeping or not 0 < made.length <= self.cache.limit:
            return
        task = asyncio.create_task(self._keep(key, os.dup(made.fd), made.length), name=f"keep {key}")
        self._keeping[key] = task
        task.add_done_callback(lambda _: self._is_kept(key))

    def _is_kept(self, key: str) -> None:
        self._keeping.pop(key, None)
        self._changed(_parsed(key)[0])

    async def _keep(self, key: str, fd: int, length: int) -> None:
        try:
            gone = self.cache.add(key, length, self._now())
            await self._in_files(self._unlink, [other for other in gone if other != key])
            for model in {_parsed(other)[0] for other in gone}:
                self._changed(model)
            if key in gone:
                return
            await self._in_files(self._write, key, fd, length)
        except OSError as error:
            self.cache.drop(key)
            log.warning("a group wasn't kept on the disk: %s", error.strerror or error)
        except asyncio.CancelledError:
            self.cache.drop(key)
            raise
        finally:
            os.close(fd)

    # In the executor.

    def _write(self, key: str, fd: int, length: int) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize - length < default_reserve(disk.f_blocks * disk.f_frsize):
            raise OSError(28, f"{length} bytes don't fit beside what stays free")
        partial = self._folder / f"{key}.part"
        try:
            with partial.open("wb", buffering=0) as out:
                os.fchmod(out.fileno(), 0o600)
                at = 0
                while at < length:
                    sent = os.sendfile(out.fileno(), fd, at, min(_STEP, length - at))
                    if not sent:
                        raise OSError(5, "the group got shorter while it was written")
                    at += sent
            partial.rename(self._folder / key)
        finally:
            partial.unlink(missing_ok=True)

    def _unlink(self, keys: Sequence[str]) -> None:
        for key in keys:
            (self._folder / key).unlink(missing_ok=True)

    def _scan(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._restore_habits()
        for path in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime):
            if path.name == HABITS:
                continue
            size = path.stat().st_size
            if _NAME.fullmatch(path.name) is None:
                path.unlink(missing_ok=True)
                continue
            self._unlink(self.cache.add(path.name, size, self._now()))

    def _restore_habits(self) -> None:
        try:
            load_habits(self._predictor, (self._folder / HABITS).read_bytes(), self._now(), _HABITS_MOST)
        except FileNotFoundError:
            return
        except (OSError, BadInput) as error:
            log.warning("habits begin anew: %s", error)

    async def _save(self) -> None:
        try:
            await self._in_files(lambda: write_durably(self._folder / HABITS, save_habits(self._predictor)))
        except MfError as error:
            log.warning("habits weren't saved: %s", error)

    async def _in_files(self, function: Callable[..., T], *arguments: Any) -> T:
        """To its end, also when cancelled: a thread must not write to a descriptor that was closed meanwhile."""
        return await to_the_end(asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments))


def _key(located: Located, group: int) -> str:
    return f"{model_text(located.model)}.{group}"


def _parsed(key: str) -> tuple[ModelId, int]:
    model, _, number = key.rpartition(".")
    return model_from(model), int(number)


def _open_whole(path: Path, length: int) -> int | None:
    """A descriptor of the file, None where there is none of this length."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    if os.fstat(fd).st_size != length:
        os.close(fd)
        return None
    return fd
