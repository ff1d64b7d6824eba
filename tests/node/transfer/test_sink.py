"""Plain bytes to their places: overlapping spans, gaps, any cuts."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.transfer.jobs import TargetSpan
from node.transfer.sink import Sink
from protocol.errors import BadInput, StorageFull

GROUP = random.Random(1).randbytes(200)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 199), st.integers(0, 80)), max_size=8),
    st.lists(st.integers(1, 199), max_size=5, unique=True),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_span_holds_its_bytes_and_nothing_else_is_written(tmp_path: Path, drawn: list[tuple[int, int, int]], cuts: list[int]) -> None:
    offsets = [0, 0]
    spans = []
    for fd, at, length in drawn:
        taken = min(length, len(GROUP) - at)
        spans.append(TargetSpan(fd, at, offsets[fd] + 3, taken))
        offsets[fd] += taken + 3
    paths = [tmp_path / "0", tmp_path / "1"]
    fds = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for path in paths]
    sink = Sink(spans, fds)
    ends = [*sorted(cuts), len(GROUP)]
    for begin, end in zip([0, *ends], ends, strict=False):
        sink.write(memoryview(GROUP)[begin:end], begin)
    for fd in fds:
        os.close(fd)
    for number, path in enumerate(paths):
        expected = bytearray(max((span.offset + span.length for span in spans if span.fd == number and span.length), default=0))
        for span in spans:
            if span.fd == number:
                expected[span.offset : span.offset + span.length] = GROUP[span.at : span.at + span.length]
        assert path.read_bytes() == bytes(expected)


def test_spans_are_checked_and_a_full_disk_has_a_name() -> None:
    for span in (TargetSpan(1, 0, 0, 1), TargetSpan(-1, 0, 0, 1), TargetSpan(0, -1, 0, 1), TargetSpan(0, 0, -1, 1)):
        with pytest.raises(BadInput):
            Sink([span], [0])
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(StorageFull, match="No space"):
        Sink.whole(full).write(memoryview(b"x"), 0)
    os.close(full)
