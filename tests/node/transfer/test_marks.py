"""Marks: only what has no gap before it counts, in whatever order it comes; another model's mean nothing."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.transfer.marks import Mark, Marks, read_mark
from protocol.errors import BadInput, StorageFull

MODEL, OTHER = b"m" * 32, b"o" * 32


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.randoms(use_true_random=False), st.integers(0, 40))
def test_a_mark_never_leads_what_was_written(lengths: list[int], random, begin: int) -> None:  # type: ignore[no-untyped-def]
    edges = [sum(lengths[:count]) for count in range(len(lengths) + 1)]
    spans = list(pairwise(edges))
    random.shuffle(spans)
    fd = os.memfd_create("marks")
    try:
        mark, written = Mark(fd, 16, begin), set(range(begin))
        for at, end in spans:
            mark.wrote(at, end)
            written.update(range(at, end))
            seen = read_mark(fd, 16)
            assert set(range(seen)) <= written
            assert seen in (0, next(place for place in range(200) if place not in written))
        assert read_mark(fd, 16) in (0, max(begin, edges[-1]))
        assert os.pread(fd, 16, 0).strip(b"\0") == b""
    finally:
        os.close(fd)


def test_marks_of_the_same_model_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    marks = Marks.create(path, MODEL, 3)
    marks.set(1, 1 << 29)
    marks.close()
    found = Marks.existing(path, MODEL, 3)
    assert found is not None
    assert [found.of(group) for group in range(3)] == [0, 1 << 29, 0]
    assert read_mark(found.fd, found.place(1)) == 1 << 29
    found.close()
    for model, groups in ((OTHER, 3), (MODEL, 4), (b"", 3)):
        assert Marks.existing(path, model, groups) is None
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert Marks.existing(path, MODEL, 3) is None


def test_odd_marks_and_a_disk_that_fails() -> None:
    with pytest.raises(BadInput):
        Mark(0, -8)
    with open("/dev/null", "rb") as closed, pytest.raises(StorageFull):
        Mark(closed.fileno(), 0).wrote(0, 1)
