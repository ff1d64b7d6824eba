"""Finds the files of a model's folder: the only way files of this machine enter the swarm. What they become: `model_manifest.py`.

A folder is a directory of a Hugging Face model, or a snapshot in its cache, where every file is a link into `blobs/` of
the same `models--*` folder; those links are followed, all others refused, so that nobody publishes a private file by way of a
planted link. Devices, FIFOs and sockets are refused. Hidden files are skipped. Pickled weights are code: a folder with nothing
else is refused; beside safetensors they are left out, and said.

The checkpoint is what `model.safetensors.index.json` lists, else `model.safetensors`, else every safetensors file of the top
folder; safetensors elsewhere are stored as plain file bytes. A GGUF file, all parts of a split one, or a folder whose only
weights are one, is taken as it is: its tensors stay quantised, in the groups of their layers.

A file that changes while it is read (identity, length, time of change) ends the work with an error. All functions block: run them in
an executor.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from node.gguf_files import SUFFIX, check_one_model, parts_of
from protocol import limits
from protocol.errors import BadInput
from protocol.manifest_check import check_file_name

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
INDEX = "model.safetensors.index.json"
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
        listed = set(indexed(files[numbers[INDEX]]).values())
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


def read_small(found: FoundFile, most: int) -> bytes:
    """The whole file; `BadInput` when it has more than `most` bytes."""
    if found.length > most:
        raise BadInput(f"{found.name}: {found.length} bytes, at most {most}")
    with open_unchanged(found) as fd:
        return read_exactly(fd, 0, found.length, found.name)


def read_exactly(fd: int, offset: int, length: int, name: str) -> bytes:
    """`BadInput` when the file `name` ends before."""
    data = os.pread(fd, length, offset)
    if len(data) != length:
        raise BadInput(f"{name}: ends before its length")
    return data


def indexed(found: FoundFile) -> dict[str, str]:
    """Names of tensors, and of the files beside it that hold them."""
    try:
        index = json.loads(read_small(found, _MAX_INDEX))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{found.name}: not valid JSON") from error
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BadInput(f"{found.name}: has no weight_map of names")
    if strange := [name for name in names.values() if not name.endswith(".safetensors") or "/" in name]:
        raise BadInput(f"{found.name}: lists {strange[0][:64]!r}, not a safetensors file beside it")
    return names
