"""Assembled groups on the disk: used again, checked each time, bounded, forgotten, and assembled ahead."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from node.assembled_cache import FOLDER, HABITS, AssembledCache
from node.cache.predictor import DAY, HOUR
from node.locate import Located
from node.stage_room import StageRoom
from protocol import limits
from protocol.errors import Unavailable
from protocol.ids import ModelId
from tests.node.test_stage_room import Setting, small_model
from tests.node.verb_fakes import InlineExecutor, VerbNode, verb_swarm

NOW = 20_000 * DAY


class Cached:
    """A node with a model published at it, and a cache before its assembler."""

    def __init__(self, node: VerbNode, located: Located, folder: Path) -> None:
        self.node, self.located, self.folder, self.now = node, located, folder, NOW
        self.cache = self.made()

    def made(self, limit: int = limits.GIB) -> AssembledCache:
        locator: Any = self.node.locator
        self.cache = AssembledCache(self.node.assembler, locator, InlineExecutor(), self.folder, limit, lambda: self.now)
        return self.cache

    @property
    def fetches(self) -> int:
        return self.node.transfer.fetches

    async def read(self, group: int) -> bytes:
        made = await self.cache.group(self.located, group)
        try:
            return made.read()
        finally:
            made.close()
            await self.cache.settled()

    def files(self) -> list[str]:
        return sorted(path.name.rpartition(".")[2] for path in (self.folder / FOLDER).iterdir() if path.name != HABITS)


@asynccontextmanager
async def cached_model(tmp_path: Path) -> AsyncIterator[Cached]:
    async with verb_swarm(1, tmp_path) as swarm:
        node = swarm.nodes[0]
        done = await node.publish(small_model(tmp_path / "m"))
        await swarm.tell()
        made = Cached(node, await node.locator.locate(node.swarm.resolve(done["model_id"])), tmp_path)
        await made.cache.open()
        yield made


@pytest.fixture
async def cached(tmp_path: Path) -> AsyncIterator[Cached]:
    async with cached_model(tmp_path) as made:
        yield made


async def test_a_node_that_ended_before_it_stood_saves_no_habits(cached: Cached, caplog: pytest.LogCaptureFixture) -> None:
    cached.folder /= "nothing here yet"
    await cached.made().close()
    assert not cached.folder.exists()
    assert caplog.messages == []


async def test_a_group_is_fetched_once_also_over_a_restart(cached: Cached) -> None:
    first = await cached.read(1)
    assert cached.fetches == 1
    assert await cached.read(1) == first
    (cached.folder / FOLDER / "half.part").write_bytes(b"what a killed run left")
    await cached.cache.close()
    await cached.made().open()
    assert cached.files() == ["1"]
    assert await cached.read(1) == first
    assert cached.fetches == 1
    assert (cached.cache.cache.hits, cached.cache.cache.misses) == (1, 0)


async def test_what_lies_here_whole_is_said_and_given_without_asking_anybody(cached: Cached) -> None:
    told: list[ModelId] = []
    cached.cache.on_change(told.append)
    assert (cached.cache.whole(cached.located.model), await cached.cache.lying(cached.located, 1)) == ([], None)
    first = await cached.read(1)
    assert (cached.cache.whole(cached.located.model), told) == ([1], [cached.located.model])
    fetches = cached.fetches
    whole = await cached.cache.lying(cached.located, 1)
    assert whole is not None
    assert whole.read() == first
    whole.close()
    path = next(path for path in (cached.folder / FOLDER).iterdir() if path.name != HABITS)
    path.write_bytes(bytes(len(first)))
    assert await cached.cache.lying(cached.located, 1) is None
    assert (cached.cache.whole(cached.located.model), cached.fetches) == ([], fetches)


@pytest.mark.parametrize("harm", ["byte", "short", "gone", "link"])
async def test_a_file_that_isnt_the_group_any_more_is_never_used(cached: Cached, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    first = await cached.read(1)
    path = next((cached.folder / FOLDER).glob("*.1"))
    data = bytearray(path.read_bytes())
    if harm == "byte":
        data[7] ^= 1
        path.write_bytes(data)
    elif harm == "short":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    if harm == "link":
        path.symlink_to("/etc/passwd")
    with caplog.at_level(logging.WARNING):
        assert await cached.read(1) == first
    assert cached.fetches == 2
    assert "isn't what it was" in caplog.text
    assert await cached.read(1) == first
    assert cached.fetches == 2


async def test_its_room_is_bounded_and_what_goes_is_gone_from_the_disk(cached: Cached) -> None:
    sizes = [group.length for group in cached.located.manifest.groups]
    await cached.made(limit=sizes[1] + sizes[2] + 1).open()
    for group in (1, 2, 3, 1, 2):
        cached.now += 60
        await cached.read(group)
    assert cached.cache.cache.used <= sizes[1] + sizes[2] + 1
    assert cached.files() == sorted(key.rpartition(".")[2] for key in cached.cache.cache)
    await cached.made(limit=0).open()
    assert cached.files() == []
    await cached.read(1)
    assert cached.files() == []


async def test_a_full_disk_costs_only_the_keeping(
    cached: Cached, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("node.assembled_cache.default_reserve", lambda total: 1 << 60)
    first = await cached.read(1)
    assert "wasn't kept" in caplog.text
    assert cached.files() == []
    assert len(list(cached.cache.cache)) == 0
    assert await cached.read(1) == first


async def test_a_forgotten_model_leaves_nothing_and_isnt_assembled_ahead(cached: Cached) -> None:
    for _ in range(3):
        await cached.read(1)
        await cached.read(2)
    await cached.cache.forget(cached.located.model)
    assert cached.files() == []
    assert await cached.cache.load_ahead() == 0


async def test_what_is_used_each_morning_is_there_before_the_morning(cached: Cached) -> None:
    for day in range(4):
        cached.now = NOW + day * DAY + 9 * HOUR
        await cached.read(1)
        cached.now += 20 * 60
        cached.cache.used(cached.located, [1])
        cached.now = NOW + day * DAY + 20 * HOUR
        await cached.read(2)
        cached.cache.used(cached.located, [2])
    await cached.cache.close()
    sizes = [group.length for group in cached.located.manifest.groups]
    await cached.made(limit=max(sizes[1], sizes[2])).open()
    cached.now = NOW + 4 * DAY + 8.5 * HOUR
    await cached.cache.load_ahead()
    await cached.cache.settled()
    assert cached.files() == ["1"]
    cached.now = NOW + 4 * DAY + 19.5 * HOUR
    assert await cached.cache.load_ahead() == 1
    await cached.cache.settled()
    assert cached.files() == ["2"]
    fetched = cached.fetches
    await cached.read(2)
    assert cached.fetches == fetched


async def test_a_group_that_cant_be_had_ahead_is_left_out(cached: Cached) -> None:
    for _ in range(3):
        await cached.read(1)
    await cached.cache.close()
    next((cached.folder / FOLDER).glob("*.1")).unlink()
    await cached.made().open()

    async def group(located: Located, number: int) -> Any:
        raise Unavailable("its holders are away")

    cached.node.assembler.group = group  # type: ignore[method-assign]
    assert await cached.cache.load_ahead() == 0
    (cached.folder / FOLDER / HABITS).write_bytes(b"nonsense")
    await cached.made().open()
    assert await cached.cache.load_ahead() == 0


async def test_a_stage_is_loaded_again_without_fetching_and_its_use_is_noted(cached: Cached) -> None:
    setting = Setting(cached.node, cached.located)
    worker: Any = setting.worker
    setting.room = StageRoom(worker, cached.cache, 1 << 40, cached.cache.used)
    async with setting.session(0, 3):
        pass
    await cached.cache.settled()
    fetched = cached.fetches
    async with setting.session(0, 3, "again"):
        pass
    assert max(habit.rate for habit in cached.cache._predictor.habits()) == 2_000
    setting.worker.generation += 1
    async with setting.session(0, 3, "after the worker ended"):
        pass
    assert cached.fetches == fetched
