"""Where the plain bytes of a group lie in a folder's files: descriptors and spans for the transfer process."""

from __future__ import annotations

import os
from types import TracebackType

from node.model_folder import FoundFile, ModelFolder, check_unchanged
from node.transfer.jobs import SourceSpan
from protocol.layout import all_group_spans
from protocol.manifest import Manifest

_WIDTH = {"BF16": 2, "F16": 2, "F32": 4}


class GroupSource:
    """Opens the folder's files once, read-only; `spans(group)` gives (spans, descriptors used, in the spans' numbering)."""

    def __init__(self, folder: ModelFolder, manifest: Manifest) -> None:
        self._manifest = manifest
        self._spans = all_group_spans(manifest)
        self._elements = element_widths(manifest)
        self._files = {found.name: found for found in folder.files}
        self._fds: dict[int, int] = {}

    def __enter__(self) -> GroupSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def spans(self, group: int) -> tuple[list[SourceSpan], list[int]]:
        """Source spans in order, zero padding (fd -1) between them, and the descriptors they number."""
        fds: list[int] = []
        numbers: dict[int, int] = {}
        spans: list[SourceSpan] = []
        at = 0
        for span in self._spans[group]:
            if span.file not in numbers:
                numbers[span.file] = len(fds)
                fds.append(self._open(span.file))
            if span.at > at:
                spans.append(SourceSpan(-1, 0, span.at - at))
            spans.append(SourceSpan(numbers[span.file], span.offset, span.length))
            at = span.at + span.length
        length = self._manifest.groups[group].length
        if length > at:
            spans.append(SourceSpan(-1, 0, length - at))
        return spans, fds

    def element(self, group: int) -> int:
        """Bytes of the group's commonest element."""
        return self._elements[group]

    def check(self) -> None:
        """`BadInput` when a file changed since it was hashed: what was coded meanwhile may hold bytes the manifest doesn't know."""
        for file, fd in self._fds.items():
            check_unchanged(fd, self._found(file))

    def _open(self, file: int) -> int:
        if file not in self._fds:
            path = self._found(file).path
            self._fds[file] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self._fds[file]

    def _found(self, file: int) -> FoundFile:
        return self._files[self._manifest.files[file].name]


def element_widths(manifest: Manifest) -> list[int]:
    """For every group the bytes of its commonest element (by bytes), for the byte planes; 1 where planes make no sense."""
    weights: list[dict[int, int]] = [{1: 0} for _ in manifest.groups]
    for tensor in manifest.tensors:
        width = _WIDTH.get(tensor.dtype, 1)
        for cut in tensor.cuts:
            weight = weights[cut.group]
            weight[width] = weight.get(width, 0) + cut.length
    return [max(weight, key=weight.__getitem__) for weight in weights]
