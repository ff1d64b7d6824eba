"""Reads a model's folder and makes its manifest: the only way files of this machine enter the swarm.

A folder is a directory of a Hugging Face model, or a snapshot in its cache, where every file is a link into `blobs/` of
the same `models--*` folder; those links are followed, all others refused, so that nobody publishes a private file by way of a
planted link. Devices, FIFOs and sockets are refused. Hidden files are skipped. Pickled weights are code: a folder with nothing
else is refused; beside safetensors they are left out, and said.

The checkpoint is what `model.safetensors.index.json` lists, else `model.safetensors`, else every safetensors file of the top
folder; safetensors elsewhere are stored as plain file bytes. A GGUF file, all parts of a split one, or a folder whose only
weights are one, is taken as it is: its tensors stay quantised, in the groups of their layers.

Every byte is read once, in order, through one buffer, into the hashes that need it. A file that changes meanwhile
(identity, length, time of change) ends the work with an error. All functions block: run them in an executor. `progress(done, total)`
gets bytes and may raise to stop.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from node.gguf_files import SUFFIX, check_one_model, parts_of, read_gguf
from protocol import limits
from protocol.config_summary import parse_config
from protocol.errors import BadInput
from protocol.gguf_header import GgufHeader, gguf_summary
from protocol.grouping import Grouping, Member, PlannedGroup, SourceTensor, files_group_id, group_id, group_model, row_cuts
from protocol.manifest import RULE, RULE_GGUF, FileEntry, GroupEntry, Manifest, Summary, TensorEntry, manifest_bytes
from protocol.manifest_check import check_file_name, check_manifest
from protocol.safetensors_header import PREFIX, HeaderTensor, header_length, parse_header

Progress = Callable[[int, int], None]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
INDEX = "model.safetensors.index.json"
_BUFFER = 8 * limits.MIB
_MAX_INDEX = 64 * limits.MIB


@dataclass(frozen=True)
class FoundFile:
    """A file to publish: `name` relative to the folder, `path` where its bytes lie (links resolved), `mark` what tells a change."""

    name: str
    path: Path
    length: int
    mark: tuple[int, int, int, int]


@dataclass(frozen=True)
class ModelFolder:
    """`files` sorted by name; `checkpoint` the numbers of those that hold the model's tensors; `left_out` names with the reason."""

    root: Path
    files: list[FoundFile]
    checkpoint: list[int]
    left_out: list[str] = field(default_factory=list)

    @property
    def gguf(self) -> bool:
        """Whether its tensors are those of GGUF files."""
        return self.files[self.checkpoint[0]].name.endswith(SUFFIX)

    def size(self) -> int:
        return sum(found.length for found in self.files)


def scan(path: str | Path) -> ModelFolder:
    """What would be published of this folder, nothing read but names. `BadInput` names the file and the rule."""
    root = Path(path).expanduser()
    if root.name.endswith(SUFFIX) and root.is_file():
        return _gguf_files(root)
    try:
        root = root.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadInput(f"{path}: no such path") from error
    if not root.is_dir():
        raise BadInput(f"{path}: not a folder", hint="give the folder that has config.json and the safetensors files, or a GGUF file")
    try:
        found = sorted(_walk(root, root, _cache_of(root)), key=lambda item: item.name.encode())
    except OSError as error:
        raise BadInput(f"{error.filename}: can't be read: {error.strerror}") from error
    pickles = [item.name for item in found if item.name.lower().endswith(PICKLES)]
    files = [item for item in found if not item.name.lower().endswith(PICKLES)]
    if not any(item.name.endswith((".safetensors", SUFFIX)) for item in files):
        raise _no_weights(path, pickles)
    if len(files) > limits.MAX_FILES:
        raise BadInput(f"{path}: {len(files)} files, at most {limits.MAX_FILES}")
    return ModelFolder(root, files, _checkpoint(root, files), [f"{name}: pickled weights are never published" for name in pickles])


def _gguf_files(path: Path) -> ModelFolder:
    """A GGUF file by its path, with the other parts where it is one of several."""
    folder = path.parent.resolve()
    cache, found = _cache_of(folder), []
    for part in parts_of(folder / path.name):
        check_file_name(part.name)
        found.append(_found(part.name, _resolved(part, part.name, cache) if part.is_symlink() else part))
    return ModelFolder(folder, found, list(range(len(found))))


def build_manifest(folder: ModelFolder, progress: Progress) -> tuple[Manifest, bytes]:
    """The manifest and its canonical bytes (their BLAKE3 is the model id). Reads every byte once, memory bounded."""
    summary, headers = _gguf_headers(folder) if folder.gguf else _headers(folder)
    _check_tensor_names(headers)
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


@contextmanager
def open_unchanged(found: FoundFile) -> Iterator[int]:
    """A descriptor of the file scanned; `BadInput` when it is another file by now, or changed until the end of the block."""
    try:
        fd = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadInput(f"{found.name}: can't be read: {error.strerror}") from error
    try:
        check_unchanged(fd, found)
        yield fd
        check_unchanged(fd, found)
    finally:
        os.close(fd)


def check_unchanged(fd: int, found: FoundFile) -> None:
    """`BadInput` when the open file isn't as it was scanned."""
    if _mark(os.fstat(fd)) != found.mark:
        raise BadInput(f"{found.name}: changed while it was read", hint="publish again when nothing writes there any more")


def _mark(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _no_weights(path: str | Path, pickles: list[str]) -> BadInput:
    if pickles:
        return BadInput(
            f"{path}: only pickled weights ({pickles[0]}), which run code of whoever made them when opened",
            hint="convert them to safetensors",
        )
    return BadInput(f"{path}: no safetensors file there", hint="give the folder that has config.json and the safetensors files")


def _cache_of(root: Path) -> Path | None:
    """The `models--*` folder of a snapshot in the Hugging Face cache."""
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        return root.parent.parent
    return None


def _walk(folder: Path, root: Path, cache: Path | None) -> Iterator[FoundFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            name = path.relative_to(root).as_posix()
            check_file_name(name)
            if name.count("/") >= limits.MAX_DEPTH:
                raise BadInput(f"{name[:64]}: folders nested deeper than {limits.MAX_DEPTH}")
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path, root, cache)
            else:
                yield _found(name, _resolved(path, name, cache) if entry.is_symlink() else path)


def _resolved(path: Path, name: str, cache: Path | None) -> Path:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadInput(f"{name}: a link that leads nowhere") from error
    if cache is None or not target.is_relative_to(cache):
        raise BadInput(
            f"{name}: a link out of the model's folder", hint="links are followed only inside a models--* folder of the Hugging Face cache"
        )
    return target


def _found(name: str, path: Path) -> FoundFile:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{name}: not a regular file (a folder behind a link, a device, a FIFO or a socket)")
    return FoundFile(name, path, status.st_size, _mark(status))


def _checkpoint(root: Path, files: list[FoundFile]) -> list[int]:
    numbers = {found.name: number for number, found in enumerate(files)}
    if INDEX in numbers:
        listed = set(_indexed(files[numbers[INDEX]]).values())
        if missing := sorted(listed - numbers.keys()):
            raise BadInput(f"{INDEX}: lists {missing[0][:64]!r}, which is not there")
        return sorted(numbers[name] for name in listed)
    if "model.safetensors" in numbers:
        return [numbers["model.safetensors"]]
    top = [number for name, number in numbers.items() if name.endswith(".safetensors") and "/" not in name]
    if not any(name.endswith(".safetensors") for name in numbers):
        top = [number for name, number in numbers.items() if name.endswith(SUFFIX) and "/" not in name]
        if top:
            check_one_model(root, [files[number].name for number in top])
    if not top:
        raise BadInput(f"{root}: weights only in folders below it", hint="give the folder that has config.json and the weights")
    return top


def _read_small(found: FoundFile, most: int) -> bytes:
    if found.length > most:
        raise BadInput(f"{found.name}: {found.length} bytes, at most {most}")
    with open_unchanged(found) as fd:
        return _read_exactly(fd, 0, found.length, found.name)


def _read_exactly(fd: int, offset: int, length: int, name: str) -> bytes:
    data = os.pread(fd, length, offset)
    if len(data) != length:
        raise BadInput(f"{name}: ends before its length")
    return data


def _indexed(found: FoundFile) -> dict[str, str]:
    """Names of tensors, and of the files beside it that hold them."""
    try:
        index = json.loads(_read_small(found, _MAX_INDEX))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{found.name}: not valid JSON") from error
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BadInput(f"{found.name}: has no weight_map of names")
    if strange := [name for name in names.values() if not name.endswith(".safetensors") or "/" in name]:
        raise BadInput(f"{found.name}: lists {strange[0][:64]!r}, not a safetensors file beside it")
    return names


def _summary(folder: ModelFolder) -> Summary:
    config = next((found for found in folder.files if found.name == "config.json"), None)
    if config is None:
        raise BadInput(f"{folder.root}: no config.json there", hint="give the folder that has config.json and the safetensors files")
    return parse_config(_read_small(config, limits.MAX_CONFIG))


def _header(found: FoundFile) -> list[HeaderTensor]:
    try:
        with open_unchanged(found) as fd:
            length = header_length(os.pread(fd, PREFIX, 0), found.length)
            return parse_header(_read_exactly(fd, PREFIX, length, found.name), found.length)
    except BadInput as error:
        raise BadInput(f"{found.name}: {error.message}", hint=error.hint) from error


def _headers(folder: ModelFolder) -> tuple[Summary, dict[int, list[HeaderTensor]]]:
    headers = {number: _header(folder.files[number]) for number in folder.checkpoint}
    index = next((found for found in folder.files if found.name == INDEX), None)
    if index is not None:
        held = {(tensor.name, folder.files[number].name) for number, tensors in headers.items() for tensor in tensors}
        if missing := sorted(_indexed(index).items() - held):
            name, file = missing[0]
            raise BadInput(f"{INDEX}: lists tensor {name[:64]!r} in {file[:64]}, which doesn't hold it", hint="is the download complete?")
    return _summary(folder), headers


def _gguf_headers(folder: ModelFolder) -> tuple[Summary, dict[int, list[HeaderTensor]]]:
    """Of a split file the first part has the figures, and every part its own tensors."""
    read = {number: gguf_header(folder.files[number]) for number in folder.checkpoint}
    tensors = [tensor for header in read.values() for tensor in header.tensors]
    first = read[folder.checkpoint[0]]
    announced = first.values.get("split.tensors.count", len(tensors))
    if announced != len(tensors):
        raise BadInput(f"{folder.files[folder.checkpoint[0]].name}: announces {announced} tensors in all, its parts have {len(tensors)}")
    return gguf_summary(first._replace(tensors=tensors)), {number: header.tensors for number, header in read.items()}


def gguf_header(found: FoundFile) -> GgufHeader:
    """The checked header of a GGUF file."""
    try:
        with open_unchanged(found) as fd:
            return read_gguf(fd, found.length)
    except BadInput as error:
        raise BadInput(f"{found.name}: {error.message}", hint=error.hint) from error


def _check_tensor_names(headers: dict[int, list[HeaderTensor]]) -> None:
    names = [tensor.name for tensors in headers.values() for tensor in tensors]
    if len(names) > limits.MAX_TENSORS:
        raise BadInput(f"the checkpoint has {len(names)} tensors, at most {limits.MAX_TENSORS}")
    if not names:
        raise BadInput("the checkpoint has no tensors")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"tensor {name[:64]!r} stands in two files of the checkpoint")
        seen.add(name)


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
