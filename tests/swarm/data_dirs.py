"""What lies in a node's directory, read from the disk and not from what the node says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stored:
    """Paths below the data directory: shard files, blobs, and what only a work in progress may have."""

    shards: frozenset[str]
    blobs: frozenset[str]
    passing: frozenset[str]


def stored(data_dir: Path) -> Stored:
    files = [path.relative_to(data_dir).as_posix() for path in data_dir.rglob("*") if path.is_file()]
    return Stored(
        frozenset(name for name in files if name.startswith("store/shards/")),
        frozenset(name for name in files if name.startswith("store/blobs/")),
        frozenset(name for name in files if name.startswith(("store/staging/", "store/incoming/", "assemble-"))),
    )
