"""One upload: what was declared, what has come, what became of it. Values alone; they are also what is kept on the disk.

    receiving -> reading -> storing -> checking -> finished | failed

Receiving takes ranges in any number of requests, over restarts too; what follows runs by itself.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from protocol import limits
from protocol.errors import BadInput, Conflict
from protocol.manifest_check import check_file_name

Stage = Literal["receiving", "reading", "storing", "checking", "finished", "failed"]
RUNNING: tuple[Stage, ...] = ("reading", "storing", "checking")
_PARTS: dict[Stage, tuple[float, float]] = {
    "receiving": (0.0, 40.0), "reading": (40.0, 55.0), "storing": (55.0, 85.0), "checking": (85.0, 100.0), "finished": (100.0, 100.0),
    "failed": (0.0, 0.0),
}  # fmt: skip
"""Of the whole, in percent: where a stage begins and ends."""


class Incoming(msgspec.Struct, kw_only=True):
    """One file: its bytes when known, how many have come from its beginning, its SHA-256 as the sender declares it."""

    size: int | None = None
    received: int = 0
    sha256: str | None = None

    @property
    def complete(self) -> bool:
        return self.size is not None and self.received == self.size


class Check(msgspec.Struct, kw_only=True):
    """A test that ran: None for one that couldn't be run, `detail` says why or what was seen."""

    name: str
    passed: bool | None
    detail: str
    seconds: float = 0.0


class Upload(msgspec.Struct, kw_only=True):
    """`who` is the uploader; `declared`: all files were named beforehand, so that the last byte begins the work; `touched` Unix seconds."""

    id: str
    who: str
    created: float
    touched: float
    name: str
    version: str = "1"
    description: str | None = None
    license: str | None = None
    gguf: str | None = None
    private: bool = False
    declared: bool = False
    files: dict[str, Incoming] = msgspec.field(default_factory=dict)
    stage: Stage = "receiving"
    done: int = 0
    total: int = 0
    coding: dict[str, Any] = msgspec.field(default_factory=dict)
    distribution: dict[str, Any] = msgspec.field(default_factory=dict)
    validation: list[Check] = msgspec.field(default_factory=list)
    model_id: str | None = None
    full_name: str | None = None
    failure: dict[str, Any] | None = None
    secret: bytes | None = None
    """Of a private model: kept so that an interrupted publish gives the same model again."""

    @property
    def percentage(self) -> float:
        first, last = _PARTS[self.stage]
        done, total = self.received() if self.stage == "receiving" else (self.done, self.total)
        return round(first + (last - first) * min(1.0, done / total), 1) if total else first

    def received(self) -> tuple[int, int]:
        """(bytes here, bytes in all as far as they are known)."""
        here = sum(file.received for file in self.files.values())
        return here, sum(file.size or file.received for file in self.files.values())

    def missing(self) -> list[str]:
        return [name for name, file in self.files.items() if not file.complete]

    def file(self, name: str, size: int | None) -> Incoming:
        """The file to receive, a new one where none was declared; `size` of all of it, where it is known."""
        if self.stage != "receiving":
            raise Conflict(f"the upload has all it needs: it is {self.stage}")
        found = self.files.get(name)
        if found is None:
            if self.declared:
                raise BadInput(f"{name[:64]!r} wasn't declared", hint="declare all files, or none", details={"param": "files"})
            found = self.add(name, size)
        if size is not None and found.size not in (None, size):
            raise Conflict(f"{name[:64]!r} has {found.size} bytes, not {size}", details={"size": found.size})
        found.size = size if found.size is None else found.size
        return found

    def add(self, name: str, size: int | None, sha256: str | None = None) -> Incoming:
        """A file by its checked name. `BadInput` for a name that leads anywhere else, one twice, or one file too many."""
        check_file_name(name)
        if len(self.files) >= limits.MAX_FILES:
            raise BadInput(f"a model has at most {limits.MAX_FILES} files")
        if name in self.files:
            raise BadInput(f"{name[:64]!r} stands there twice", details={"param": "files"})
        made = self.files[name] = Incoming(size=size, sha256=sha256)
        return made

    def ready(self) -> None:
        """`Conflict`, naming them, while files are incomplete."""
        missing = self.missing()
        if missing or not self.files:
            raise Conflict(
                f"{len(missing)} of {len(self.files)} files aren't complete",
                hint="send the rest with PUT and Content-Range",
                details={"missing": {name: self.files[name].received for name in missing[:64]}},
            )
