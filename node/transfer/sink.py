"""Where a group's plain bytes go as they are decoded: by pwrite, straight to their places.

Written by pwrite rather than through a mapping: a full disk is then an error with a name, not a SIGBUS.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from node.transfer.jobs import BeginDecoding, FetchGroup, TargetSpan
from node.transfer.marks import Mark
from protocol import limits
from protocol.errors import BadInput, StorageFull


class Sink:
    """Spans may overlap (tied weights lie once in a group, twice in a file) and leave gaps, whose bytes go nowhere."""

    def __init__(self, spans: Sequence[TargetSpan], fds: Sequence[int], mark: Mark | None = None) -> None:
        if any(min(span.at, span.offset, span.length) < 0 or not 0 <= span.fd < len(fds) for span in spans):
            raise BadInput("fetch: a span names a file that wasn't passed, or a negative place")
        self._spans = sorted((span for span in spans if span.length), key=lambda span: span.at)
        # The furthest end among each span and those before it: ascending, so that it can be searched.
        self._ends = list(accumulate((span.at + span.length for span in self._spans), max))
        self._fds = fds
        self._mark = mark

    @classmethod
    def whole(cls, fd: int, offset: int = 0) -> Sink:
        """The whole group at `offset` of one file."""
        return cls([TargetSpan(0, 0, offset, limits.MAX_GROUP)], [fd])

    @classmethod
    def marked(cls, job: FetchGroup | BeginDecoding, fds: Sequence[int]) -> Sink:
        """The places that the job names, and its mark where it has one."""
        if job.mark is None:
            return cls(job.spans or [], fds)
        if not fds:
            raise BadInput("fetch: a mark without the descriptor it stands in")
        return cls(job.spans or [], fds[:-1], Mark(fds[-1], job.mark, job.done))

    def write(self, plain: memoryview, at: int) -> None:
        """`plain` stands at `at` of the group."""
        end = at + len(plain)
        number = bisect_left(self._ends, at + 1)
        while number < len(self._spans) and self._spans[number].at < end:
            span = self._spans[number]
            begin, until = max(at, span.at), min(end, span.at + span.length)
            if begin < until:
                _write_at(self._fds[span.fd], plain[begin - at : until - at], span.offset + begin - span.at)
            number += 1
        if self._mark is not None:
            self._mark.wrote(at, end)


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    try:
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done
    except OSError as error:
        raise StorageFull(f"writing the fetched group failed: {error.strerror}", hint="free some space on that disk") from error
