"""Kill, and let fail, the process that codes a group and keeps a shard of it (as a publisher does, and who makes a lost shard again)."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from node.store.disk import DiskStore
from node.store.leaf_check import first_bad_leaf
from node.transfer.staging import Staging
from protocol.encoding import leaf_digests, shard_root
from tests.crash.child import QUOTA
from tests.crash.order import faults
from tests.crash.staging_child import LENGTH
from tests.crash.strace import CHANGES, places, run
from tests.crash.test_store import RESTART, every, timed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(Random(1).randbytes(LENGTH))
    return path


def judge(folder: Path, kept: bool | None) -> None:
    """What a start finds: staged shards whole, or gone, no beginnings; the shard `kept` is there (None: it may be)."""
    staging, store = Staging(folder / "staging"), DiskStore(folder / "store", QUOTA, reserve=0)
    assert timed(store.open) < RESTART
    try:
        staging.clean()
        assert not list((folder / "staging").glob("*.making")) if (folder / "staging").exists() else True
        for encoding in staging.list():
            record = staging.record(encoding)
            for shard in staging.shards(encoding):
                staged = staging.open(encoding, shard)
                data = staged.path.read_bytes()
                assert b"".join(leaf_digests(data)) == staged.leaves
                assert shard_root(len(data), staged.leaves) == record.roots[shard]
        listed = store.list_shards()
        assert len(listed) == 1 if kept else len(listed) <= (kept is None)
        for info in listed:
            reader = store.open_shard(info.key)
            assert reader is not None
            assert first_bad_leaf(reader) is None
            reader.close()
            assert store.get_blob(info.key.encoding) is not None
        assert list((folder / "store" / "incoming").iterdir()) == []
    finally:
        store.close()


@every(7)
def test_a_kill_leaves_whole_staged_shards_or_none_and_loses_no_kept_one(tmp_path: Path, source: Path, every: int) -> None:
    whole = run(tmp_path / "whole", str(source), child="staging_child")
    assert whole.acks == [0, 1, 2], whole.told
    judge(tmp_path / "whole", True)
    for place in places(whole.calls)[::every]:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, str(source), child="staging_child", at=place, fault="signal=KILL")
        assert ended.killed
        judge(folder, True if 1 in ended.acks else None)
        again = run(folder, str(source), child="staging_child")
        assert again.acks == [0, 1, 2], again.told
        judge(folder, True)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@every(12)
def test_a_disk_that_fails_refuses_it_as_full(tmp_path: Path, source: Path, error: str, every: int) -> None:
    whole = run(tmp_path / "whole", str(source), child="staging_child")
    for place in places(whole.calls)[::every]:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, str(source), child="staging_child", at=place, fault=f"error={error}")
        assert not ended.killed, (place, ended.told)
        assert ended.acks == [0, 1, 2] or ended.refused.get(0) or ended.told[0].startswith("no open"), (place, ended.told)
        judge(folder, True if 1 in ended.acks else None)


def test_the_order_before_a_kept_shard_is_acknowledged(tmp_path: Path, source: Path) -> None:
    ended = run(tmp_path / "whole", str(source), child="staging_child", trace=f"{CHANGES},writev")
    assert faults(ended.calls, [1]) == []
