"""The node's directory: made private, locked by one process, marked with a format number.

`format` says which version of this program wrote the directory. A newer one is refused instead of guessed at.
The lock is an flock, so that it goes with the process however that ends; the pid beside it is only for the message.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from node.store.durable import sync_folder
from protocol.errors import BadInput, Conflict, StorageFull

FORMAT = 1
_FORMAT_FILE = "format"
_LOCK_FILE = "lock"


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` by `data` so that after a crash it is the old or the new, whole. Raises `StorageFull`, `BadInput`."""
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> BadInput | StorageFull:
    """What to tell of a write that failed."""
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return StorageFull(f"no room to write {path}: {error.strerror}")
    return BadInput(f"{path} can't be written: {error.strerror}", hint="choose another with --data-dir, or give yourself write access")


class DataDir:
    """Open the directory before anything in it is touched; `close` lets the next process have it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __enter__(self) -> DataDir:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Makes and locks it. `Conflict`: in use, or of a newer format. `BadInput`: not a directory, not writable."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise write_error(self.path, error) from error
        try:
            self._take(lock)
            self._check_format()
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"the data directory {self.path} is in use by process {pid}", hint="stop it, or choose another with --data-dir"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _check_format(self) -> None:
        path = self.path / _FORMAT_FILE
        try:
            text = path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            write_durably(path, f"{FORMAT}\n".encode())
            return
        except OSError as error:
            raise BadInput(f"{path} can't be read: {error.strerror}") from error
        if not (text.isascii() and text.isdigit()):
            raise BadInput(f"{path} holds no format number", hint="is this a ModelFloat data directory?")
        if int(text) > FORMAT:
            raise Conflict(
                f"{self.path} has format {text}, this version knows {FORMAT}", hint="run a newer mf-node, or use another directory"
            )


def running_pid(path: Path) -> int | None:
    """The process that holds the directory's lock, as it wrote it; None when nobody does."""
    try:
        lock = os.open(path / _LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(lock, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(lock)
    return None
