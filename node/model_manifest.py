"""Makes a model's manifest from its folder: every byte read once, in order, through one buffer, into the hashes that need it.

`progress(done, total)` gets bytes and may raise to stop. All functions block: run them in an executor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from blake3 import blake3

from node.model_folder import FoundFile, ModelFolder, open_unchanged
from node.model_headers import headers_of
from protocol import limits
from protocol.errors import BadInput
from protocol.grouping import Grouping, Member, PlannedGroup, SourceTensor, files_group_id, group_id, group_model, row_cuts
from protocol.manifest import RULE, RULE_GGUF, FileEntry, GroupEntry, Manifest, Summary, TensorEntry, manifest_bytes
from protocol.manifest_check import check_manifest
from protocol.safetensors_header import HeaderTensor

Progress = Callable[[int, int], None]

_BUFFER = 8 * limits.MIB


def build_manifest(folder: ModelFolder, progress: Progress) -> tuple[Manifest, bytes]:
    """The manifest and its canonical bytes (their BLAKE3 is the model id). Reads every byte once, memory bounded."""
    summary, headers = headers_of(folder)
    hashing = _Hashing(folder, headers, progress)
    for number in range(len(folder.files)):
        hashing.read_file(number)
    lengths = [found.length for found in folder.files]
    rule = RULE_GGUF if folder.gguf else RULE
    grouping = group_model(lengths, hashing.tensors, rule=rule)
    manifest = _manifest(folder, hashing, grouping, summary, rule)
    check_manifest(manifest)
    data = manifest_bytes(manifest)
    if len(data) > limits.MAX_BLOB:
        raise BadInput(f"{folder.root}: its manifest would take {len(data)} bytes, at most {limits.MAX_BLOB}")
    return manifest, data


class _FilesHasher:
    """Digests of the files groups: every plain byte in order, a new digest at each GiB."""

    def __init__(self) -> None:
        self._hasher = blake3()
        self._length = 0
        self._done: list[bytes] = []

    def update(self, data: memoryview) -> None:
        while len(data):
            take = data[: limits.MAX_GROUP - self._length]
            self._hasher.update(take)
            self._length += len(take)
            data = data[len(take) :]
            if self._length == limits.MAX_GROUP:
                self._roll()

    def _roll(self) -> None:
        self._done.append(self._hasher.digest())
        self._hasher, self._length = blake3(), 0

    def digests(self) -> list[bytes]:
        if self._length:
            self._roll()
        return self._done


class _Hashing:
    """One pass over all files: digests of files, tensors, cuts of large tensors, and files groups."""

    def __init__(self, folder: ModelFolder, headers: dict[int, list[HeaderTensor]], progress: Progress) -> None:
        self._folder = folder
        self._headers = headers
        self._progress = progress
        self._buffer = memoryview(bytearray(_BUFFER))
        self._done = 0
        self.plain = _FilesHasher()
        self.files: list[bytes] = []
        self.tensors: list[SourceTensor] = []
        self.cuts: dict[tuple[int, int], bytes] = {}
        """Digest of a large tensor's cut by (file, offset)."""

    def read_file(self, number: int) -> None:
        found = self._folder.files[number]
        whole = blake3(max_threads=blake3.AUTO)
        end = 0
        with open_unchanged(found) as fd:
            for tensor in self._headers.get(number, ()):
                self._feed(fd, found, end, tensor.offset - end, [whole, self.plain])
                self._tensor(fd, number, tensor, whole)
                end = tensor.offset + tensor.length
            self._feed(fd, found, end, found.length - end, [whole, self.plain])
        self.files.append(whole.digest())

    def _tensor(self, fd: int, number: int, tensor: HeaderTensor, whole: blake3) -> None:
        own = blake3(max_threads=blake3.AUTO)
        cuts = row_cuts(tensor.shape, tensor.length)
        for _, offset, length in cuts:
            sinks = [whole, own]
            if len(cuts) > 1:
                sinks.append(blake3(max_threads=blake3.AUTO))
            self._feed(fd, self._folder.files[number], tensor.offset + offset, length, sinks)
            if len(cuts) > 1:
                self.cuts[number, tensor.offset + offset] = sinks[-1].digest()
        self.tensors.append(SourceTensor(tensor.name, tensor.dtype, tensor.shape, number, tensor.offset, tensor.length, own.digest()))

    def _feed(self, fd: int, found: FoundFile, offset: int, length: int, sinks: Sequence[blake3 | _FilesHasher]) -> None:
        while length:
            read = os.preadv(fd, [self._buffer[: min(length, _BUFFER)]], offset)
            if not read:
                raise BadInput(f"{found.name}: changed while it was read: it ends before its length")
            for sink in sinks:
                sink.update(self._buffer[:read])
            offset, length = offset + read, length - read
            self._done += read
            self._progress(self._done, self._folder.size())


def _manifest(folder: ModelFolder, hashing: _Hashing, grouping: Grouping, summary: Summary, rule: str) -> Manifest:
    plain = iter(hashing.plain.digests())
    groups = []
    for group in grouping.groups:
        if group.spans is None:
            groups.append(GroupEntry(name=group.name, id=_tensor_group_id(group, hashing), length=group.length))
        else:
            own = files_group_id(group.length, next(plain))
            groups.append(GroupEntry(name=group.name, id=own, length=group.length, spans=group.spans))
    tensors = [
        TensorEntry(
            name=t.name, dtype=t.dtype, shape=list(t.shape), file=t.file, offset=t.offset, length=t.length, digest=t.digest, cuts=cuts
        )
        for t, cuts in zip(hashing.tensors, grouping.cuts, strict=True)
    ]
    files = [
        FileEntry(name=found.name, length=found.length, digest=whole) for found, whole in zip(folder.files, hashing.files, strict=True)
    ]
    return Manifest(rule=rule, files=files, tensors=tensors, groups=groups, summary=summary, parameters=grouping.parameters)


def _tensor_group_id(group: PlannedGroup, hashing: _Hashing) -> bytes:
    def digest_of(member: Member) -> bytes:
        return member.digest or hashing.cuts[member.file, member.offset]

    return group.known_id() or group_id((member.dtype, member.shape, digest_of(member)) for member in group.members)
