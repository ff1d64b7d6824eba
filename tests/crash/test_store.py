"""Kill, and let fail, the process that stores at every call by which it changes the disk; then look at what is there.

Shown: nothing acknowledged is lost, nothing unverified is listed, nothing is left over, the next start is quick. In CI some of
the places, always the same; each of them in `make nightly`.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from node.store.disk import DiskStore
from node.store.index import VERSION
from node.store.leaf_check import first_bad_leaf
from protocol.errors import StorageFull
from protocol.ids import digest
from tests.crash import script
from tests.crash.child import QUOTA
from tests.crash.order import ACTS, faults
from tests.crash.script import LENGTHS, STORE, State, after
from tests.crash.strace import CHANGES, Ended, Place, places, run
from tests.node.store.samples import get, shard

RESTART = 5.0
COLUMNS = "shard, model, group_index, bytes, put_at, owner, file_bytes, sum"


def every(some: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("every", [pytest.param(some, id="some"), pytest.param(1, id="every", marks=pytest.mark.nightly)])


def timed(act: Callable[[], object]) -> float:
    """Seconds that it took."""
    start = time.monotonic()
    act()
    return time.monotonic() - start


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
    assert timed(store.open) < RESTART
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
        assert least.pins & most.pins <= store.pins() <= least.pins | most.pins
        for key in least.renewed & most.renewed & listed:
            assert store.renewed()[key] == script.LATER
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


@pytest.mark.parametrize("steps", ["STORE", "COLLECT"])
@every(6)
def test_a_kill_at_any_change_loses_nothing_acknowledged(tmp_path: Path, every: int, steps: str) -> None:
    all_steps = getattr(script, steps)
    ended, where = undisturbed(tmp_path, every, steps=steps)
    assert ended.acks == list(range(len(all_steps)))
    for place in where:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, steps, at=place, fault="signal=KILL")
        assert ended.killed
        judge(folder, *states(ended.acks, all_steps))


def _break_index(folder: Path, how: str) -> None:
    """What makes a start make it anew."""
    path = folder / "index.sqlite"
    match how:
        case "deleted":
            path.unlink()
        case "of another version":
            with sqlite3.connect(path) as database:
                database.execute(f"pragma user_version = {VERSION + 1}")
            database.close()
        case "damaged":
            path.write_bytes(b"SQLite format 3\0" + bytes(5000))
        case "lying":  # a shard that isn't there, another of a length that it hasn't, and one left out
            with sqlite3.connect(path) as database:
                database.execute("delete from shards where rowid = 1")
                database.execute(f"insert or replace into shards select zeroblob(32), {COLUMNS} from shards")
                database.execute("update shards set file_bytes = file_bytes + 1, bytes = 7 where encoding != zeroblob(32)")
            database.close()


@pytest.fixture(params=["deleted", "of another version", "damaged", "lying"])
def old_index(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, State]:
    """A store whose index must be made again, with leftovers of a kill in it."""
    folder = tmp_path / "prepared"
    store = DiskStore(folder, QUOTA, reserve=0)
    store.open()
    state = State()
    for step in STORE[:8]:
        script.perform(store, step)
        state = after(state, step)
    store.close()
    _break_index(folder, request.param)
    (folder / "incoming" / "shard-left").write_bytes(b"half")
    (folder / "shards" / f"{digest(b'damaged').hex()}.0").write_bytes(b"MFSHARD1\0\0")
    return folder, state


@every(3)
def test_a_kill_while_the_index_is_made_again(tmp_path: Path, old_index: tuple[Path, State], every: int) -> None:
    prepared, state = old_index
    _, where = undisturbed(tmp_path, every, prepared, "-")
    judge(tmp_path / "whole", state, state)
    for place in where:
        folder = tmp_path / f"{place.call}{place.count}"
        shutil.copytree(prepared, folder)
        assert run(folder, "-", at=place, fault="signal=KILL").killed
        judge(folder, state, state)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("steps", ["STORE", "COLLECT"])
@every(15)
def test_a_disk_that_fails_refuses_puts_and_goes_on_reading(tmp_path: Path, error: str, every: int, steps: str) -> None:
    """One call fails; the step under way is refused as full (507), each other one is done, all that is held is read meanwhile, and nothing
    refused is listed."""
    assert StorageFull.status == 507
    all_steps = getattr(script, steps)
    _, where = undisturbed(tmp_path, every, steps=steps)
    for place in where:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, steps, at=place, fault=f"error={error}")
        assert not ended.killed, (place, ended.told)
        if "open" not in ended.told:
            assert ended.told[0].startswith("no open ")
            continue
        assert len(ended.refused) <= 1
        assert sum(line.startswith("reads ") for line in ended.told) == len(ended.refused)
        writes = ("blob", "put", "model", "pin", "renew")
        assert {ended.refused[step] for step in ended.refused if all_steps[step][0] in writes} <= {StorageFull.code}
        _judge_refused(folder, ended, all_steps)


def _judge_refused(folder: Path, ended: Ended, all_steps: list[script.Step]) -> None:
    """A step that was refused may have been done or not, but for a put: what was refused is not there."""
    least = most = State()
    for number, step in enumerate(all_steps):
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
