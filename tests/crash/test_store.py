"""Kill, and let fail, the process that stores at every call by which it changes the disk; then look at what is there.

Shown: nothing acknowledged is lost, nothing unverified is listed, nothing is left over, the next start is quick. In CI some of
the places, always the same; each of them in `make nightly`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from node.store.disk import DiskStore
from node.store.leaf_check import first_bad_leaf
from protocol.ids import digest
from tests.crash import script
from tests.crash.child import QUOTA
from tests.crash.order import ACTS, faults
from tests.crash.script import LENGTHS, STORE, State, after
from tests.crash.strace import CHANGES, Ended, Place, places, run
from tests.node.store.samples import get, shard

RESTART = 5.0


def every(some: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("every", [pytest.param(some, id="some"), pytest.param(1, id="every", marks=pytest.mark.nightly)])


PUTS = [number for number, (act, _) in enumerate(STORE) if act == "put"]


def states(acks: Iterable[int], all_steps: list[script.Step]) -> tuple[State, State]:
    """After the acknowledged steps, and with the one under way as well."""
    done = len(list(acks))
    state = State()
    for step in all_steps[:done]:
        state = after(state, step)
    return state, after(state, all_steps[done]) if done < len(all_steps) else state


def judge(folder: Path, least: State, most: State) -> None:
    """Opens the store as the next process would and compares."""
    store = DiskStore(folder, QUOTA, reserve=0)
    start = time.monotonic()
    store.open()
    assert time.monotonic() - start < RESTART
    try:
        listed = {info.key for info in store.list_shards()}
        assert set(least.shards) & set(most.shards) <= listed <= set(least.shards) | set(most.shards)
        for key in listed:
            seed, _ = (least.shards | most.shards)[key]
            assert get(store, key) == shard(seed, LENGTHS[seed])[3]
            reader = store.open_shard(key)
            assert reader is not None
            assert first_bad_leaf(reader) is None
            reader.close()
        for words in least.blobs & most.blobs:
            assert store.get_blob(digest(words)) == words
        for model, blobs in store.models().items():
            allowed = [state.models.get(model) for state in (least, most)]
            assert blobs in [[digest(words) for words in listed] for listed in allowed if listed is not None]
        assert set(least.models) & set(most.models) <= set(store.models())
        assert list((folder / "incoming").iterdir()) == []
        assert len(list((folder / "shards").iterdir())) == len(listed)
        assert store.space().used == sum(path.stat().st_size for name in ("shards", "blobs") for path in (folder / name).iterdir())
    finally:
        store.close()


def undisturbed(tmp_path: Path, every: int, prepare: Path | None = None, steps: str = "STORE") -> tuple[Ended, list[Place]]:
    """One run without a fault, and the places where the next runs get theirs."""
    folder = tmp_path / "whole"
    if prepare:
        shutil.copytree(prepare, folder)
    ended = run(folder, steps)
    assert not ended.killed, ended.told
    return ended, places(ended.calls)[::every]


@every(4)
def test_a_kill_at_any_change_loses_nothing_acknowledged(tmp_path: Path, every: int) -> None:
    ended, where = undisturbed(tmp_path, every)
    assert ended.acks == list(range(len(STORE)))
    for place in where:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, "STORE", at=place, fault="signal=KILL")
        assert ended.killed
        judge(folder, *states(ended.acks, STORE))


@pytest.fixture
def without_index(tmp_path: Path) -> tuple[Path, State]:
    """A store whose index was deleted, with leftovers of a kill in it."""
    folder = tmp_path / "prepared"
    store = DiskStore(folder, QUOTA, reserve=0)
    store.open()
    state = State()
    for step in STORE[:8]:
        script.perform(store, step)
        state = after(state, step)
    store.close()
    for path in folder.glob("index.sqlite*"):
        path.unlink()
    (folder / "incoming" / "shard-left").write_bytes(b"half")
    (folder / "shards" / f"{digest(b'damaged').hex()}.0").write_bytes(b"MFSHARD1\0\0")
    return folder, state


@every(6)
def test_a_kill_while_the_index_is_made_again(tmp_path: Path, without_index: tuple[Path, State], every: int) -> None:
    prepared, state = without_index
    _, where = undisturbed(tmp_path, every, prepared, "-")
    for place in where:
        folder = tmp_path / f"{place.call}{place.count}"
        shutil.copytree(prepared, folder)
        assert run(folder, "-", at=place, fault="signal=KILL").killed
        judge(folder, state, state)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@every(12)
def test_a_disk_that_fails_refuses_puts_and_goes_on_reading(tmp_path: Path, error: str, every: int) -> None:
    """One call fails; the step under way is refused as full (507), each other one is done, and nothing refused is listed."""
    _, where = undisturbed(tmp_path, every)
    for place in where:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, "STORE", at=place, fault=f"error={error}")
        assert not ended.killed, (place, ended.told)
        if "open" not in ended.told:
            assert ended.told[0].startswith("no open ")
            continue
        assert len(ended.refused) <= 1
        assert {ended.refused[step] for step in ended.refused if STORE[step][0] in ("blob", "put", "model")} <= {"storage_full"}
        _judge_refused(folder, ended)


def _judge_refused(folder: Path, ended: Ended) -> None:
    """A step that was refused may have been done or not, but for a put: what was refused is not there."""
    least = most = State()
    for number, step in enumerate(STORE):
        refused = number in ended.refused
        least = least if refused else after(least, step)
        most = most if refused and step[0] == "put" else after(most, step)
    judge(folder, least, most)


def test_the_order_of_every_acknowledged_put(tmp_path: Path) -> None:
    ended = run(tmp_path / "store", "STORE", trace=f"{CHANGES},writev")
    assert set(PUTS) <= set(ended.acks)
    assert faults(ended.calls, PUTS) == []


@pytest.mark.parametrize("act", [*ACTS, "wait"])
def test_the_checker_sees_each_act_that_is_left_out(tmp_path: Path, act: str) -> None:
    ended = run(tmp_path / "store", "STORE", act, trace=f"{CHANGES},writev")
    found = faults(ended.calls, PUTS)
    assert found
    assert act == "wait" or any(f"no {act}" in fault for fault in found)
