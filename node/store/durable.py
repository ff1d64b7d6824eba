"""The one place where the order of a durable write stands.

write -> fdatasync -> rename -> fsync(folder) -> (the caller) index -> acknowledge. A kill at any point leaves either
the whole file under its name or a leftover in `incoming/`, which the next start removes.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.errors import BadInput, MfError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_errors(path: Path, writing: bool = False) -> Iterator[None]:
    """Turns what the disk or the index refuses into an error that names the path. A failed write is `StorageFull`: put it elsewhere."""
    failed = StorageFull if writing else MfError
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"the disk is full: {path}: {error.strerror}", hint="free some room, or lower --storage") from error
        if error.errno in _CLOSED or isinstance(error, NotADirectoryError | FileExistsError):
            raise BadInput(f"{path} can't be used: {error.strerror}", hint="give this user the right to write there") from error
        raise failed(f"the disk failed: {path}: {error.strerror}", hint="check the disk") from error
    except sqlite3.Error as error:
        raise failed(
            f"the index beside {path} failed: {error}", hint="check the disk; the index may be deleted while the node is off"
        ) from error


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def settle(fd: int, temp: Path, final: Path) -> None:
    """The bytes written to `fd` are on the disk under `final` after this returns."""
    os.fdatasync(fd)
    os.rename(temp, final)
    sync_folder(final.parent)


def remove_quietly(path: Path) -> None:
    """For what a failed write left behind. A disk that refuses this too leaves it to the next start."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_file(final: Path, data: bytes, incoming: Path) -> None:
    """Replaces `final` durably and at once, by way of a file in `incoming` (same file system).

    When it fails, a new file is taken away again; a replaced one holds either content.
    """
    fresh = not final.exists()
    fd, name = tempfile.mkstemp(dir=incoming, prefix=".new-")
    try:
        write_all(fd, data)
        settle(fd, Path(name), final)
    except OSError:
        remove_quietly(Path(name))
        if fresh:
            remove_quietly(final)
        raise
    finally:
        os.close(fd)
