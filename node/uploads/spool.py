"""Where uploads lie until they are shards: a folder each, its files written in place, one small record beside them.

Nothing is held in memory but a buffer. What is acknowledged is on the disk: the bytes first, then the record that counts them. Names
were checked (`protocol/manifest_check.py`) and the folders are this program's alone, so that a path can't lead out of them; no link is
followed all the same. All functions block: run them in an executor.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from node.data_dir import write_durably
from node.uploads.upload import Incoming, Upload
from protocol.errors import BadInput, StorageFull

FOLDER, RECORD, FILES = "uploads", "upload.json", "files"


class Spool:
    def __init__(self, folder: Path) -> None:
        self._root = folder / FOLDER

    def files(self, upload: Upload) -> Path:
        return self._root / upload.id / FILES

    def load(self) -> list[Upload]:
        """All there are. What a crash cut off is counted by the bytes that lie there."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        found = []
        for path in sorted(self._root.iterdir()):
            try:
                upload = msgspec.json.decode((path / RECORD).read_bytes(), type=Upload)
            except (OSError, msgspec.MsgspecError):  # begun, and never acknowledged
                shutil.rmtree(path, ignore_errors=True)
                continue
            for name, file in upload.files.items():
                file.received = min(file.received, self._length(upload, name))
            found.append(upload)
        return found

    def save(self, upload: Upload) -> None:
        folder = self._root / upload.id
        folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(folder / RECORD, msgspec.json.encode(upload))

    def open(self, upload: Upload, name: str) -> int:
        """A descriptor to write with; `BadInput` where another file's name stands in the way."""
        path = self.files(upload) / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refused(name, error) from error

    def write(self, fd: int, name: str, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _refused(name, error) from error

    def settle(self, fd: int, name: str, file: Incoming) -> None:
        """Durable, and no longer than what counts."""
        try:
            os.ftruncate(fd, file.received)
            os.fdatasync(fd)
        except OSError as error:
            raise _refused(name, error) from error
        finally:
            os.close(fd)

    def drop_files(self, upload: Upload) -> None:
        shutil.rmtree(self.files(upload), ignore_errors=True)

    def drop(self, upload: Upload) -> None:
        shutil.rmtree(self._root / upload.id, ignore_errors=True)

    def free(self) -> int:
        return shutil.disk_usage(self._root).free

    def _length(self, upload: Upload, name: str) -> int:
        try:
            return os.lstat(self.files(upload) / name).st_size
        except OSError:
            return 0


def _refused(name: str, error: OSError) -> BadInput | StorageFull:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return StorageFull("this node's disk is full", hint="what has come stays for a day: go on when there is room")
    return BadInput(f"{name[:64]!r} can't be kept: {error.strerror}", hint="one file's name is another's folder?")
