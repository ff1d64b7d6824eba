"""The digests of a model's files while they are being written: each file is hashed as far as it is there without a gap.

Hashing whole files once all is written costs a second pass over the disk's cache at a moment when nothing else is left to do. Here it
happens beside the transfer, in the order of the file; groups that come in that order leave only the last one for the end.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping, Sequence

from blake3 import blake3

from protocol.manifest import Span

STEP = 8 << 20
"""Bytes mapped at once: what is mapped counts as this process's memory, and threads share a few MiB as well as more."""


class _Prefix:
    """One file: `at` bytes of it are hashed. `spans` are (end, group) in order; together they cover it without a gap."""

    def __init__(self, spans: Sequence[tuple[int, int]], length: int) -> None:
        self._spans, self._length = spans, length
        self._next = self.at = 0
        self._hasher = blake3(max_threads=blake3.AUTO)

    def advance(self, fd: int, done: set[int]) -> None:
        end = self.at
        while self._next < len(self._spans) and self._spans[self._next][1] in done:
            end = self._spans[self._next][0]
            self._next += 1
        if end == self.at:
            return
        while self.at < end:
            start = self.at - self.at % mmap.ALLOCATIONGRANULARITY
            stop = min(end, start + STEP)
            # Mapped, not read: a copy of every byte costs half as much again as hashing it.
            with mmap.mmap(fd, stop - start, prot=mmap.PROT_READ, offset=start) as mapped, memoryview(mapped) as view:
                self._hasher.update(view[self.at - start :])
            self.at = stop

    def digest(self) -> bytes | None:
        return self._hasher.digest() if self.at == self._length else None


class FileDigests:
    """`spans` by group, `lengths` by file. All methods block and may be called from several threads."""

    def __init__(self, spans: Sequence[Sequence[Span]], lengths: Mapping[int, int]) -> None:
        by_file: dict[int, list[tuple[int, int, int]]] = {}
        for group, listed in enumerate(spans):
            for span in listed:
                by_file.setdefault(span.file, []).append((span.offset, span.offset + span.length, group))
        self._files = {file: _prefix(by_file.get(file, []), length) for file, length in lengths.items()}
        self._groups = [{span.file for span in listed} for listed in spans]
        self._done: set[int] = set()
        self._lock = threading.Lock()

    def written(self, group: int, fds: Mapping[int, int]) -> None:
        """All of the group is in its files, whose descriptors are given by number."""
        with self._lock:
            self._done.add(group)
            for file in self._groups[group]:
                prefix = self._files.get(file)
                if prefix is not None and file in fds:
                    prefix.advance(fds[file], self._done)

    def writing(self, group: int) -> None:
        """The group is written (again): what was hashed of its files so far doesn't count."""
        with self._lock:
            if group in self._done:
                for file in self._groups[group]:
                    self._files.pop(file, None)

    def of(self, file: int) -> bytes | None:
        """The whole file's BLAKE3; None when it isn't known without reading it."""
        with self._lock:
            prefix = self._files.get(file)
            return prefix.digest() if prefix is not None else None


def _prefix(spans: list[tuple[int, int, int]], length: int) -> _Prefix | None:
    """None where the spans leave a gap or overlap: such a file is hashed as a whole."""
    spans.sort()
    ends = [0, *(end for _, end, _ in spans)]
    whole = all(start == end for (start, _, _), end in zip(spans, ends, strict=False)) and ends[-1] == length
    return _Prefix([(end, group) for _, end, group in spans], length) if whole else None
