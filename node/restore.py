"""Writes a fetched model's files: every byte at its place, hashed, and only then under their names.

Groups come in any order and each goes to several ranges of several files, so the files are made at full length (sparse) in a
hidden folder inside the target, written by offset, and renamed when BLAKE3 of each equals the manifest's. The target is locked
meanwhile; a hidden folder left by a killed fetch is removed by the next. A target that already holds files is
refused unless they are this model's own, which are then kept and not fetched again. Nothing is left behind by `abort`.
Rejected: writing under the final names, where a reader would find half a model.

All methods block; `write_group` may be called from several threads for different groups.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import stat
from pathlib import Path

from blake3 import blake3

from node.file_digests import FileDigests
from node.transfer.jobs import TargetSpan
from protocol import limits
from protocol.errors import BadInput, Conflict, MfError, StorageFull
from protocol.layout import all_rebuild_spans
from protocol.manifest import Manifest

WORK = ".mf-fetch"
_WRITE = 8 * limits.MIB


class FileWriter:
    """`open`, then `write_group` for each of `wanted()`, then `finish`; or `abort` at any time (safe to repeat)."""

    def __init__(self, manifest: Manifest, directory: str | Path, only: set[int] | None = None) -> None:
        """`only`: numbers of the files wanted, None for all."""
        self._manifest = manifest
        self._directory = Path(directory)
        self._spans = all_rebuild_spans(manifest)
        self._kept: set[int] = set() if only is None else set(range(len(manifest.files))) - only
        """Files not to be written: not asked for, or there already."""
        self._fds: dict[int, int] = {}
        self._lock: int | None = None
        self._made: list[Path] = []
        self._placed: list[Path] = []
        self._right: set[int] = set()
        self._digests = FileDigests([], {})

    def open(self) -> None:
        """Makes and locks the target. `Conflict` when other files lie there, `StorageFull` when it won't fit."""
        try:
            self._open()
        except OSError as error:
            self.abort()
            raise _said(error, self._directory) from error
        except BaseException:
            self.abort()
            raise

    def wanted(self) -> list[int]:
        """Group numbers that files not there yet need, in the order in which they stand in the files."""
        places = {
            index: min((span.file, span.offset) for span in spans if span.file not in self._kept)
            for index, spans in enumerate(self._spans)
            if any(span.file not in self._kept for span in spans)
        }
        return sorted(places, key=lambda index: places[index])

    def groups_of(self, files: set[int]) -> list[int]:
        """Group numbers with bytes in any of these files, ascending."""
        return [index for index, spans in enumerate(self._spans) if any(span.file in files for span in spans)]

    def targets(self, group: int) -> tuple[list[TargetSpan], list[int]]:
        """Where the group's bytes go, for who writes them straight there, and the descriptors meant. They stay this writer's."""
        spans = [span for span in self._spans[group] if span.file not in self._kept]
        files = sorted({span.file for span in spans})
        self._right.difference_update(files)
        self._digests.writing(group)
        number = {file: place for place, file in enumerate(files)}
        return [TargetSpan(number[span.file], span.at, span.offset, span.length) for span in spans], [self._fds[file] for file in files]

    def written(self, group: int) -> None:
        """Who was given `targets` has written all of it there."""
        self._digests.written(group, self._fds)

    def write_group(self, group: int, source: int | memoryview | bytes | mmap.mmap, offset: int = 0) -> None:
        """Writes a group's verified plain bytes from a buffer or a descriptor (from `offset` of it) to their files."""
        length = self._manifest.groups[group].length
        if not isinstance(source, int):
            with memoryview(source) as view:
                self._write(group, view, offset)
        elif os.fstat(source).st_size < offset + length:
            raise BadInput(f"group {self._manifest.groups[group].name}: fewer bytes than its length")
        elif length:
            with mmap.mmap(source, offset + length, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
                self._write(group, view, offset)

    def wrong_files(self) -> set[int]:
        """Numbers of the files whose bytes aren't what the manifest says (yet)."""
        for index in self._fds.keys() - self._right:
            found = self._digests.of(index) or _file_digest(self._directory / WORK / str(index))
            if found == self._manifest.files[index].digest:
                self._right.add(index)
        return self._fds.keys() - self._right

    def finish(self) -> list[Path]:
        """Checks every file not found right before, and gives each its name; the files' paths. On failure everything made is removed."""
        try:
            self._verify()
            return self._place()
        except OSError as error:
            raise _said(error, self._directory) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Removes what isn't finished; the folder too, if this made it."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        for path in self._placed:
            path.unlink(missing_ok=True)
        self._placed.clear()
        if self._lock is not None:
            shutil.rmtree(self._directory / WORK, ignore_errors=True)
            os.close(self._lock)
            self._lock = None
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:
                break
        self._made.clear()

    def _open(self) -> None:
        self._make_folder(self._directory)
        self._lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise Conflict(f"{self._directory}: another fetch is writing there") from None
        work = self._directory / WORK
        if work.is_symlink():
            raise Conflict(f"{work}: is a link")
        shutil.rmtree(work, ignore_errors=True)
        self._keep_own_files()
        self._check_room()
        work.mkdir(mode=0o700)
        for index, entry in enumerate(self._manifest.files):
            if index not in self._kept:
                self._fds[index] = os.open(work / str(index), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                os.ftruncate(self._fds[index], entry.length)
        self._digests = FileDigests(self._spans, {index: self._manifest.files[index].length for index in self._fds})

    def _make_folder(self, folder: Path) -> None:
        """`folder` and its missing parents, remembered for `abort`."""
        missing = []
        while not folder.exists():
            if folder.is_symlink():
                raise Conflict(f"{folder}: a link that leads nowhere")
            missing.append(folder)
            folder = folder.parent
        if not folder.is_dir():
            raise Conflict(f"{folder}: is not a folder")
        for new in reversed(missing):
            new.mkdir()
            self._made.append(new)

    def _keep_own_files(self) -> None:
        numbers = {entry.name: index for index, entry in enumerate(self._manifest.files)}
        for folder, folders, names in os.walk(self._directory):
            for name in (*names, *(inner for inner in folders if Path(folder, inner).is_symlink())):
                path = Path(folder, name)
                index = numbers.get(path.relative_to(self._directory).as_posix())
                if index is None or not self._is_own(path, index):
                    raise Conflict(
                        f"{self._directory}: {path.relative_to(self._directory)} lies there and isn't this model's",
                        hint="give an empty or a new folder",
                    )
                self._kept.add(index)

    def _is_own(self, path: Path, index: int) -> bool:
        entry, status = self._manifest.files[index], path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.length:
            return False
        return _file_digest(path) == entry.digest

    def _check_room(self) -> None:
        need = sum(entry.length for index, entry in enumerate(self._manifest.files) if index not in self._kept)
        free = shutil.disk_usage(self._directory).free
        if need > free:
            raise StorageFull(f"{self._directory}: the model takes {need} bytes, {free} are free there")

    def _write(self, group: int, view: memoryview, start: int) -> None:
        if len(view) - start < self._manifest.groups[group].length:
            raise BadInput(f"group {self._manifest.groups[group].name}: fewer bytes than its length")
        self._digests.writing(group)
        try:
            for span in self._spans[group]:
                if span.file not in self._kept:
                    self._right.discard(span.file)
                    _write_at(self._fds[span.file], view[start + span.at : start + span.at + span.length], span.offset)
            self._digests.written(group, self._fds)
        except OSError as error:
            raise _said(error, self._directory) from error

    def _verify(self) -> None:
        for index in sorted(self.wrong_files()):
            name = self._manifest.files[index].name
            raise BadInput(f"{name}: the bytes put together are not the file's", hint="fetch again; the manifest may be false")

    def _place(self) -> list[Path]:
        for index in self._fds:
            path = self._directory / self._manifest.files[index].name
            self._make_folder(path.parent)
            if path.exists() or path.is_symlink() or not path.parent.resolve().is_relative_to(self._directory.resolve()):
                raise Conflict(f"{path}: appeared during the fetch")
            os.rename(self._directory / WORK / str(index), path)
            self._placed.append(path)
        self._placed.clear()
        self._made.clear()
        return [path for entry in self._manifest.files if (path := self._directory / entry.name).exists()]


def _said(error: OSError, directory: Path) -> MfError:
    text = f"{directory}: can't be written: {error.strerror}"
    return StorageFull(text) if error.errno in (28, 122) else BadInput(text, hint="give a folder that can be written")


def _file_digest(path: Path) -> bytes:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).digest()


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        written = os.pwrite(fd, view[:_WRITE], offset)
        view, offset = view[written:], offset + written
