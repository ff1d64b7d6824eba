"""Kill, and let fail, the process that makes lost shards again: what it stages is whole or gone, what it kept stays, the next try works."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random

import pytest

from node.transfer.encode import encode_group
from node.transfer.jobs import EncodeGroup, SourceSpan
from node.transfer.staging import Staging
from tests.crash.order import faults
from tests.crash.repair_child import MADE
from tests.crash.strace import CHANGES, places, run
from tests.crash.test_staging import judge
from tests.crash.test_store import every
from tests.node.store.samples import MODEL
from tests.node.transfer.test_fetch import KEY
from tests.node.verb_fakes import InlineExecutor

LENGTH, K, N = 2_500_000, 2, 5
"""Two windows of each shard."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A staging folder with all n shards of a group."""
    (tmp_path / "plain").write_bytes(Random(1).randbytes(LENGTH))
    spans = [SourceSpan(0, 0, LENGTH)]
    job = EncodeGroup(model=MODEL, group=0, group_id=bytes(32), length=LENGTH, spans=spans, k=K, n=N, compression="raw", element=2)
    fd = os.open(tmp_path / "plain", os.O_RDONLY)
    asyncio.run(encode_group(job, [fd], Staging(tmp_path / "source"), KEY, InlineExecutor()))
    os.close(fd)
    return tmp_path / "source"


def test_what_is_made_again_is_what_was_lost(tmp_path: Path, source: Path) -> None:
    ended = run(tmp_path / "whole", str(source), child="repair_child", trace=f"{CHANGES},writev")
    assert ended.acks == [0, 1, 2], ended.told
    assert faults(ended.calls, [1]) == []
    [kept] = (tmp_path / "whole" / "store" / "shards").iterdir()
    [encoding] = Staging(source).list()
    assert kept.read_bytes().endswith(Staging(source).open(encoding, MADE[0]).path.read_bytes())
    assert not list((tmp_path / "whole" / "staging").iterdir())


@every(6)
def test_a_kill_leaves_whole_shards_or_none_and_loses_no_kept_one(tmp_path: Path, source: Path, every: int) -> None:
    whole = run(tmp_path / "whole", str(source), child="repair_child")
    for place in places(whole.calls)[::every]:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, str(source), child="repair_child", at=place, fault="signal=KILL")
        assert ended.killed
        judge(folder, True if 1 in ended.acks else None)
        again = run(folder, str(source), child="repair_child")
        assert again.acks == [0, 1, 2], again.told
        judge(folder, True)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@every(9)
def test_a_disk_that_fails_refuses_it_as_full(tmp_path: Path, source: Path, error: str, every: int) -> None:
    whole = run(tmp_path / "whole", str(source), child="repair_child")
    for place in places(whole.calls)[::every]:
        folder = tmp_path / f"{place.call}{place.count}"
        ended = run(folder, str(source), child="repair_child", at=place, fault=f"error={error}")
        assert not ended.killed, (place, ended.told)
        assert ended.acks == [0, 1, 2] or ended.refused.get(0) == "storage_full" or ended.told[0].startswith("no open"), (place, ended.told)
        judge(folder, True if 1 in ended.acks else None)
