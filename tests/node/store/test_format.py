"""Formats: steps up and back, and directories of every format published so far, readable for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.store.disk import DiskStore
from node.store.durable import sync_folder
from node.store.format import FORMAT, STEPS, Step, revert, upgrade
from node.store.leaf_check import first_bad_leaf
from node.store.shard_file import file_name
from protocol.ids import ModelId, digest
from tests.fixtures import format_1
from tests.node.store.conformance import QUOTA


def link_into(folder: str) -> Step:
    """A step as a real one would be: the same bytes under names of a new layout."""

    def up(root: Path) -> None:
        (root / folder).mkdir(exist_ok=True)
        for path in (root / "shards").iterdir():
            if not (root / folder / path.name).exists():
                (root / folder / path.name).hardlink_to(path)
        sync_folder(root / folder)

    def down(root: Path) -> None:
        shutil.rmtree(root / folder, ignore_errors=True)

    return Step(up, down)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    shutil.copytree(format_1.STORE, root)
    return root


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_format_has_a_step_to_the_next() -> None:
    assert set(STEPS) == set(range(1, FORMAT))


def test_steps_go_up_and_all_the_way_back(directory: Path) -> None:
    before = everything(directory)
    steps = {1: link_into("second"), 2: link_into("third")}
    upgrade(directory, 1, 3, steps)
    assert (directory / "format").read_text() == "3\n"
    assert len(list((directory / "third").iterdir())) == len(list((directory / "shards").iterdir()))
    assert {name: data for name, data in everything(directory).items() if name in before} == before | {"format": b"3\n"}
    revert(directory, 1, steps)
    assert everything(directory) == before


@pytest.mark.parametrize("links", range(len(format_1.SHARDS)))
def test_a_step_that_broke_off_is_done_again(directory: Path, monkeypatch: pytest.MonkeyPatch, links: int) -> None:
    real, left = Path.hardlink_to, [links]

    def breaks(self: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(self, target)

    monkeypatch.setattr(Path, "hardlink_to", breaks)
    with pytest.raises(KeyboardInterrupt):
        upgrade(directory, 1, 2, {1: link_into("second")})
    monkeypatch.undo()
    assert (directory / "format").read_text() == "1\n"
    upgrade(directory, 1, 2, {1: link_into("second")})
    assert len(list((directory / "second").iterdir())) == len(format_1.SHARDS)


def test_a_directory_of_format_1_is_read_for_ever(directory: Path) -> None:
    store = DiskStore(directory, QUOTA, reserve=0)
    store.open()
    try:
        assert sorted(file_name(info.key) for info in store.list_shards()) == format_1.SHARDS
        for info in store.list_shards():
            reader = store.open_shard(info.key)
            assert reader is not None
            assert first_bad_leaf(reader) is None
            reader.close()
        model = ModelId(bytes.fromhex(format_1.TOLD["model"]))
        files = format_1.rebuilt(store, model)
        assert {name: digest(data).hex() for name, data in files.items()} == format_1.TOLD["files"]
    finally:
        store.close()
