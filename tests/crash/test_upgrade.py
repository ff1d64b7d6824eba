"""Kill, and let fail, the way of a directory to the next format and back: at any moment it is one of the two, whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.store.disk import DiskStore
from tests.crash.child import QUOTA, read_all
from tests.crash.strace import places, run
from tests.crash.test_store import RESTART, every, timed
from tests.fixtures import format_1


@pytest.fixture(params=["up", "down"])
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "prepared"
    shutil.copytree(format_1.STORE, folder)
    if request.param == "down":
        assert run(folder, "up", child="upgrade_child").acks == [0]
    return folder, request.param


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and "index" not in path.name}


def judge(folder: Path) -> None:
    """By its number: of format 1 the older program finds all of its own; of format 2 the newer does too."""
    number, here = (folder / "format").read_text().strip(), everything(folder)
    of_one = everything(format_1.STORE)
    assert {name: here.get(name) for name in of_one if name != "format"} == {name: of_one[name] for name in of_one if name != "format"}
    if number == "2":
        assert {name for name in here if name.startswith("second/")} == {f"second/{name}" for name in format_1.SHARDS}
        return
    assert number == "1"
    store = DiskStore(folder, QUOTA, reserve=0)
    assert timed(store.open) < RESTART
    try:
        assert read_all(store) == len(format_1.SHARDS)
    finally:
        store.close()


@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
@every(3)
def test_a_fault_at_any_change_leaves_one_of_the_two(tmp_path: Path, prepared: tuple[Path, str], fault: str, every: int) -> None:
    folder, way = prepared
    shutil.copytree(folder, tmp_path / "whole")
    ended = run(tmp_path / "whole", way, child="upgrade_child")
    assert ended.acks == [0]
    for place in places(ended.calls)[::every]:
        target = tmp_path / f"{place.call}{place.count}"
        shutil.copytree(folder, target)
        ended = run(target, way, child="upgrade_child", at=place, fault=fault)
        assert ended.killed == ("KILL" in fault)
        assert ended.acks == [0] or ended.killed or ended.refused == {0: "storage_full"}, (place, ended.told)
        judge(target)
        if (target / "format").read_text().strip() != ("2" if way == "up" else "1"):
            assert run(target, way, child="upgrade_child").acks == [0]
        judge(target)
        assert run(target, "down", child="upgrade_child").acks == [0]
        assert everything(target).keys() - {"store.lock"} == everything(format_1.STORE).keys() or way == "down"
