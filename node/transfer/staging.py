"""Coded shards on their way out: `staging/<encoding hex>/` with a file per shard, its leaf list beside it, and the envelope.

A folder is filled under a name of its own and renamed when complete, so what is listed is whole; what an interrupted publish
leaves has no envelope, and `clean` removes it. Nothing is synced: a staged shard can be coded again, and its receiver checks it.
These methods block: call them from an executor.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.store.durable import disk_errors, remove_quietly
from protocol import limits
from protocol.encoding import Encoding, encoding_id, leaf_count, parse_encoding
from protocol.errors import BadInput, NotFound
from protocol.ids import EncodingId

_MAKING = ".making"
_ENVELOPE = "envelope"


@dataclass(frozen=True)
class StagedShard:
    """One staged shard: its file, bytes, and leaf digests concatenated."""

    path: Path
    length: int
    leaves: bytes


class Staging:
    """The staging folder of a data directory; made when first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> Path:
        """A fresh folder to fill; `finish` makes it appear, `abandon` removes it."""
        with disk_errors(self._folder, writing=True):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(suffix=_MAKING, dir=self._folder))

    def finish(self, making: Path, envelope: bytes) -> EncodingId:
        """Writes the envelope and renames. Where the encoding is staged already its files are replaced, one by one, by the same bytes:
        a kill may have left it some of them only, and who reads them now may go on."""
        encoding = encoding_id(envelope)
        (making / _ENVELOPE).write_bytes(envelope)
        there = self._of(encoding)
        try:
            os.rename(making, there)
        except OSError:
            if not there.is_dir():
                raise
            # A leaf list before its shard, whose name is a part of the list's.
            for path in sorted(making.iterdir(), reverse=True):
                os.replace(path, there / path.name)
            self.abandon(making)
        return encoding

    def abandon(self, making: Path) -> None:
        shutil.rmtree(making, ignore_errors=True)

    def clean(self) -> int:
        """Removes what interrupted work left half done; call at start only. Returns how many."""
        left = [entry for entry in self._folder.iterdir() if not _is_complete(entry)] if self._folder.is_dir() else []
        for making in left:
            self.abandon(making)
        return len(left)

    def list(self) -> list[EncodingId]:
        if not self._folder.is_dir():
            return []
        return sorted(EncodingId(bytes.fromhex(entry.name)) for entry in self._folder.iterdir() if _is_complete(entry))

    def shards(self, encoding: bytes) -> Sequence[int]:
        """Numbers of the shards staged of this encoding."""
        folder = self._of(encoding)
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []

    def envelope(self, encoding: bytes) -> bytes:
        """The signed encoding; `NotFound` when nothing of it is staged."""
        try:
            return (self._of(encoding) / _ENVELOPE).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"encoding {encoding.hex()[:16]} isn't staged here", hint="publish again") from error

    def record(self, encoding: bytes) -> Encoding:
        return parse_encoding(self.envelope(encoding))[1]

    def open(self, encoding: bytes, shard: int) -> StagedShard:
        """`NotFound` when it isn't staged, `BadInput` when its files don't have their lengths (a crash: drop and code again)."""
        length = self.record(encoding).shard_length()
        path = self.path(encoding, shard)
        try:
            leaves = leaves_path(path).read_bytes()
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise NotFound(f"shard {shard} of encoding {encoding.hex()[:16]} isn't staged here", hint="publish again") from error
        if size != length or len(leaves) != 32 * leaf_count(length):
            raise BadInput(f"staged shard {path} is incomplete", hint="publish again: it will be coded anew")
        return StagedShard(path, length, leaves)

    def path(self, encoding: bytes, shard: int) -> Path:
        """Where the file of a staged shard lies (to rename it into the store, for example)."""
        if not 0 <= shard < limits.MAX_SHARDS:
            raise BadInput(f"there is no shard {shard}")
        return self._of(encoding) / str(shard)

    def drop_shard(self, encoding: bytes, shard: int) -> None:
        """Removes one shard that has arrived, its folder with the last. What the disk won't remove stays: it has arrived anyway."""
        path = self.path(encoding, shard)
        remove_quietly(path)
        if not path.exists():
            remove_quietly(leaves_path(path))
        if not self.shards(encoding):
            self.drop(encoding)

    def drop(self, encoding: bytes) -> None:
        """Removes all that is staged of an encoding; nothing there is fine. The envelope first: without it the rest isn't listed."""
        remove_quietly(self._of(encoding) / _ENVELOPE)
        shutil.rmtree(self._of(encoding), ignore_errors=True)

    def _of(self, encoding: bytes) -> Path:
        if len(encoding) != 32:
            raise BadInput(f"an encoding id has 32 bytes, not {len(encoding)}")
        return self._folder / encoding.hex()


def leaves_path(shard: Path) -> Path:
    """The leaf list beside a shard file."""
    return shard.with_name(f"{shard.name}.leaves")


def _is_complete(entry: Path) -> bool:
    return len(entry.name) == 64 and (entry / _ENVELOPE).is_file()
