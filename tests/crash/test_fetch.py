"""Kill, and let fail, the process that writes a fetched model at every call by which it changes the disk; then fetch again.

Shown: no half file under its name, nothing of the model's folder touched but its own; the next fetch takes up what the marks say
and ends with the whole model. After an error of the disk nothing is left.
"""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import pytest

from node.restore import WORK
from tests.crash.fetch_child import SEGMENT, manifest_of
from tests.crash.strace import Ended, places, run
from tests.crash.test_store import every
from tests.support.synthetic import tiny_llama

GROUPS_AT_ONCE = 1
"""In this child; the node has a few, each of which may lose a segment."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", layers=2, files=2)
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("in a folder of its own")
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and WORK not in path.parts)


def told(ended: Ended, words: str) -> int:
    return next(int(line[len(words) :]) for line in ended.told if line.startswith(words))


def again(target: Path, source: Path) -> Ended:
    """Fetched again without a fault: the whole model, nothing else."""
    ended = run(target, str(source), child="fetch_child")
    assert "ack 0" in ended.told, ended.told
    assert files(target) == files(source)
    assert not (target / WORK).exists()
    assert all(filecmp.cmp(source / path, target / path, shallow=False) for path in files(source))
    return ended


@every(8)
def test_a_kill_at_any_change_leaves_no_half_file_and_costs_a_segment(tmp_path: Path, source: Path, every: int) -> None:
    whole = again(tmp_path / "whole", source)
    size = told(whole, "wrote ")
    assert size == sum(group.length for group in manifest_of(source).groups)
    writes = 0
    for place in places(whole.calls)[::every]:
        target = tmp_path / f"{place.call}{place.count}"
        assert run(target, str(source), child="fetch_child", at=place, fault="signal=KILL").killed
        if target.exists():
            assert all(filecmp.cmp(source / path, target / path, shallow=False) for path in files(target))
        ended = again(target, source)
        if place.call == "pwrite64":
            # Every segment written before this call is taken up, but for the one whose mark the kill came before.
            writes = max(writes, told(ended, "in place "))
            assert told(ended, "in place ") + told(ended, "wrote ") <= size + GROUPS_AT_ONCE * SEGMENT
        shutil.rmtree(target)
    assert writes > size / 2


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@every(16)
def test_a_disk_that_fails_ends_it_with_a_reason_and_leaves_nothing(tmp_path: Path, source: Path, error: str, every: int) -> None:
    whole = again(tmp_path / "whole", source)
    for place in places(whole.calls)[::every]:
        target = tmp_path / f"{place.call}{place.count}"
        ended = run(target, str(source), child="fetch_child", at=place, fault=f"error={error}")
        assert not ended.killed, (place, ended.told)
        assert any(line.startswith(("ack 0", "no 0 storage_full", "no 0 bad_request")) for line in ended.told), (place, ended.told)
        if target.exists() and "ack 0" not in ended.told:
            assert files(target) == []
        again(target, source)
        shutil.rmtree(target)
