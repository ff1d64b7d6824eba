"""Files hashed as they are written: in any order of groups, again where one is written again."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from node.file_digests import FileDigests
from protocol.manifest import Span

CUTS = [0, 5_000, 5_001, 70_000, 140_000, 200_123]
DATA = random.Random(1).randbytes(CUTS[-1])


def spans() -> list[list[Span]]:
    """One group for each cut of file 0; the first has all of file 1 too."""
    listed = [[Span(0, start, end - start, 0)] for start, end in pairwise(CUTS)]
    listed[0].append(Span(1, 0, 10, 0))
    return listed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, int]:
    folder: Path = tmp_path_factory.mktemp("files")
    (folder / "0").write_bytes(DATA)
    (folder / "1").write_bytes(DATA[:10])
    return {number: os.open(folder / str(number), os.O_RDWR) for number in (0, 1)}


@given(order=st.permutations(range(len(CUTS) - 1)))
def test_any_order_gives_the_digest_once_all_is_there(files: dict[int, int], order: list[int]) -> None:
    digests = FileDigests(spans(), {0: len(DATA), 1: 10})
    for group in order:
        assert digests.of(0) is None
        digests.writing(group)
        digests.written(group, files)
    assert digests.of(0) == blake3(DATA).digest()
    assert digests.of(1) == blake3(DATA[:10]).digest()


def test_what_is_written_again_isnt_trusted(files: dict[int, int]) -> None:
    digests = FileDigests(spans(), {0: len(DATA), 1: 10})
    for group in range(len(CUTS) - 1):
        digests.written(group, files)
    digests.writing(3)
    assert digests.of(0) is None
    assert digests.of(1) is not None


def test_a_file_with_a_gap_is_left_to_others() -> None:
    holed = spans()
    del holed[2]
    assert FileDigests(holed, {0: len(DATA)}).of(0) is None


def test_an_empty_file_is_known_at_once() -> None:
    assert FileDigests([], {0: 0}).of(0) == blake3(b"").digest()
