"""Single files and single groups: bit-identical, and nothing else is read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.restore import FileWriter
from protocol.errors import BadInput, Conflict, NotFound
from protocol.grouping import group_id
from protocol.ids import digest
from tests.node.verb_fakes import VerbNode, quiet, small_model, verb_swarm
from tests.swarm.tools import digests

Published = tuple[VerbNode, Path, dict[str, Any]]


@pytest.fixture
async def published(tmp_path: Path) -> AsyncIterator[Published]:
    """A reader that holds nothing, the model's folder, what publish said."""
    async with verb_swarm(4, tmp_path) as swarm:
        folder = small_model(tmp_path / "little")
        done = await swarm.nodes[0].publish(folder)
        await swarm.tell()
        yield await swarm.add(tmp_path), folder, done


async def test_one_file(published: Published, tmp_path: Path) -> None:
    reader, folder, done = published
    told = await reader.fetcher.fetch(done["model_id"], tmp_path / "out", quiet, files=["config.json"])
    assert (told["files"], told["bytes"], reader.transfer.fetches) == (1, (folder / "config.json").stat().st_size, 1)
    assert digests(tmp_path / "out") == {"config.json": digests(folder)["config.json"]}


async def test_one_group_and_where_its_tensors_lie(published: Published, tmp_path: Path) -> None:
    reader, _folder, done = published
    told = await reader.fetcher.fetch(done["model_id"], tmp_path / "out", quiet, groups=["layer.1", "files/0"])
    assert (told["files"], reader.transfer.fetches) == (0, 2)
    located = next(iter(reader.locator._located.values()))
    entry = located.manifest.groups[located.manifest.group_index("layer.1")]
    data = (tmp_path / "out" / "layer.1").read_bytes()
    assert len(data) == entry.length == told["groups"][0]["bytes"]
    tensors = told["groups"][0]["tensors"]
    assert group_id((t["dtype"], t["shape"], digest(data[t["at"] : t["at"] + t["length"]])) for t in tensors) == entry.id
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["0", "layer.1"]


async def test_what_is_not_there_or_in_the_way(published: Published, tmp_path: Path) -> None:
    reader, _, done = published
    with pytest.raises(NotFound, match=r"no file 'x\.json'"):
        await reader.fetcher.fetch(done["model_id"], tmp_path / "out", quiet, files=["x.json"])
    with pytest.raises(BadInput, match=r"no group 'layer\.9'"):
        await reader.fetcher.fetch(done["model_id"], tmp_path / "out", quiet, groups=["layer.9"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "layer.1").write_text("mine")
    with pytest.raises(Conflict, match=r"layer\.1: lies there"):
        await reader.fetcher.fetch(done["model_id"], tmp_path / "out", quiet, groups=["layer.0", "layer.1"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["layer.1"]


@pytest.mark.parametrize("moment", ["open", "finish"])
async def test_stopped_while_a_thread_is_at_the_target_nothing_stays(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Neither where the target was being made, nor where its files just got their names."""
    reader, _, done = published
    begun, go_on, really = threading.Event(), threading.Event(), getattr(FileWriter, moment)

    def slowly(writer: FileWriter) -> object:
        told = really(writer)
        begun.set()
        assert go_on.wait(10)
        return told

    monkeypatch.setattr(FileWriter, moment, slowly)
    fetching = asyncio.create_task(reader.fetcher.fetch(done["model_id"], tmp_path / "made" / "out", quiet))
    assert await asyncio.to_thread(begun.wait, 10)
    assert (tmp_path / "made" / "out").exists()
    for _ in range(3):  # by a word, by the end of its line, by the node's own end
        fetching.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert not (tmp_path / "made").exists()
