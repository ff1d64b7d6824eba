"""Writes a fetched model's files: every byte at its place, hashed, and only then under their names.

Groups come in any order and each goes to several ranges of several files, so the files are made at full length (sparse) in a
hidden folder inside the target, written by offset, and renamed when BLAKE3 of each equals the manifest's. The target is locked
meanwhile. What a killed fetch left in the hidden folder is taken up by the next fetch of the same model, which goes on where the marks
say (`node/transfer/marks.py`), and removed by one of another. A target that already holds files is
refused unless they are this model's own, which are then kept and not fetched again. Nothing is left behind by `abort`, all by `leave`.
Rejected: writing under the final names, where a reader would find half a model.

All methods block; `write_group` may be called from several threads for different groups.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import stat
from pathlib import Path

from blake3 import blake3

from node.file_digests import FileDigests
from node.transfer.jobs import TargetSpan
from node.transfer.marks import Marks
from protocol import limits
from protocol.errors import BadInput, Conflict, MfError, StorageFull
from protocol.layout import all_rebuild_spans
from protocol.manifest import Manifest

WORK = ".mf-fetch"
MARKS = "marks"
_WRITE = 8 * limits.MIB
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class FileWriter:
    """`open`, then `write_group` for each of `wanted()`, then `finish`; or `abort` at any time (safe to repeat).

    `only`: numbers of the files wanted, None for all. Goes on with what a killed fetch of `model` left; without an id it begins anew.
    """

    def __init__(self, manifest: Manifest, directory: str | Path, model: bytes = b"", only: set[int] | None = None) -> None:
        self._manifest = manifest
        self._model = model or bytes(32)
        self._resumes = bool(model)
        self._taken_up = False
        self._directory = Path(directory)
        self._spans = all_rebuild_spans(manifest)
        self._kept: set[int] = set() if only is None else set(range(len(manifest.files))) - only
        """Files not to be written: not asked for, or there already."""
        self._fds: dict[int, int] = {}
        self._marks: Marks | None = None
        self._lock: int | None = None
        self._made: list[Path] = []
        self._placed: list[Path] = []
        self._named: list[Path] = []
        self._made_for: list[Path] = []
        """What `finish` gave its name, and the folders made for it."""
        self._right: set[int] = set()
        self._by_file: dict[int, set[int]] = {}
        self._digests = FileDigests([], {})

    def open(self) -> None:
        """Makes and locks the target. `Conflict` when other files lie there, `StorageFull` when it won't fit."""
        try:
            self._open()
        except BaseException as error:
            if self._taken_up:
                self.leave()
            self.abort()
            if isinstance(error, OSError):
                raise _said(error, self._directory) from error
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

    def mark(self, group: int) -> tuple[int, int]:
        """(descriptor, place in it) of the group's mark, for who writes the group straight to its places. It stays this writer's."""
        assert self._marks is not None
        return self._marks.fd, self._marks.place(group)

    def in_place(self, group: int) -> int:
        """Plain bytes of the group, from its beginning, that its mark says are written."""
        return min(self._marks.of(group), self._manifest.groups[group].length) if self._marks else 0

    def complete(self, group: int) -> None:
        """The whole group is written."""
        assert self._marks is not None
        try:
            self._marks.set(group, self._manifest.groups[group].length)
        except OSError as error:
            raise _said(error, self._directory) from error

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

    def wrong_groups(self, files: set[int]) -> list[int]:
        """Numbers of the groups by which these files, found wrong, can be wrong: those of each tensor with other bytes, and those of
        what lies between tensors, which has no digest of its own."""
        entries = self._manifest.groups
        wrong = {group for group in self.groups_of(files) if entries[group].spans is not None}
        for tensor in self._manifest.tensors:
            if tensor.file in files and _digest_of(self._fds[tensor.file], tensor.offset, tensor.length) != tensor.digest:
                wrong.update(cut.group for cut in tensor.cuts)
        return sorted(wrong)

    def finish(self) -> list[Path]:
        """Checks every file not found right before, and gives each its name; the files' paths. On failure everything made is removed."""
        try:
            self._verify()
            return self._place()
        except OSError as error:
            raise _said(error, self._directory) from error
        finally:
            self.abort()

    def leave(self) -> None:
        """Ends, and leaves what is written for the next fetch to go on with."""
        self._close_files()
        self._placed.clear()
        self._made.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _close_files(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        if self._marks is not None:
            self._marks.close()
            self._marks = None

    def abort(self) -> None:
        """Removes what isn't finished; the folder too, if this made it."""
        self._close_files()
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

    def take_back(self) -> None:
        """Removes what `finish` named: its asker had stopped it meanwhile."""
        self._placed, self._named = self._named, []
        self._made, self._made_for = self._made_for, []
        self.abort()

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
        self._keep_own_files()
        self._open_marks(work)
        self._check_room(work)
        for index in range(len(self._manifest.files)):
            if index not in self._kept:
                self._open_file(work, index)
        self._digests = FileDigests(self._spans, {index: self._manifest.files[index].length for index in self._fds})

    def _open_marks(self, work: Path) -> None:
        """Those of a killed fetch of this model, else fresh ones in a fresh folder."""
        count = len(self._manifest.groups)
        self._marks = Marks.existing(work / MARKS, self._model, count) if self._resumes else None
        self._taken_up = self._marks is not None
        if self._marks is None:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(mode=0o700)
            self._marks = Marks.create(work / MARKS, self._model, count)

    def _open_file(self, work: Path, index: int) -> None:
        """One that isn't there at its full length is made, after the marks of its groups are taken back."""
        path, length = work / str(index), self._manifest.files[index].length
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        self._fds[index] = fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
            raise Conflict(f"{path}: isn't what a fetch leaves there", hint="remove it")
        if status.st_size != length or not length:
            if status.st_size:
                # Only where there is something to cut: ext4 lets the close of a file that was ever cut to nothing wait for the disk.
                os.ftruncate(fd, 0)
            self._take_back_marks(index)
            os.ftruncate(fd, length)

    def _take_back_marks(self, index: int) -> None:
        assert self._marks is not None
        for group in self._groups_by_file().get(index, ()):
            if self._marks.of(group):
                self._marks.set(group, 0)

    def _groups_by_file(self) -> dict[int, set[int]]:
        if not self._by_file:
            for group, spans in enumerate(self._spans):
                for span in spans:
                    self._by_file.setdefault(span.file, set()).add(group)
        return self._by_file

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
            if Path(folder) == self._directory and WORK in folders:
                folders.remove(WORK)
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

    def _check_room(self, work: Path) -> None:
        need = sum(entry.length for index, entry in enumerate(self._manifest.files) if index not in self._kept)
        need -= sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in os.scandir(work))
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
            self.complete(group)
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
        self._named, self._placed = self._placed, []
        self._made_for, self._made = self._made, []
        return [path for entry in self._manifest.files if (path := self._directory / entry.name).exists()]


def _said(error: OSError, directory: Path) -> MfError:
    text = f"{directory}: can't be written: {error.strerror}"
    return StorageFull(text) if error.errno in _FULL else BadInput(text, hint="give a folder that can be written")


def _digest_of(fd: int, offset: int, length: int) -> bytes:
    hasher = blake3(max_threads=blake3.AUTO)
    for at in range(offset, offset + length, _WRITE):
        hasher.update(os.pread(fd, min(_WRITE, offset + length - at), at))
    return hasher.digest()


def _file_digest(path: Path) -> bytes:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).digest()


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        written = os.pwrite(fd, view[:_WRITE], offset)
        view, offset = view[written:], offset + written
