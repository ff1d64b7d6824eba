"""What repair must still know after a restart: who held what, and who was away. One small file; losing it costs a few needless repairs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from node.sightings import MAX_KEPT, Sighting
from protocol.errors import BadInput
from protocol.framing import Record, pack, unpack

log = logging.getLogger(__name__)
_MOST_SHARDS = 60_000
"""An array on the wire has at most 65,536 items; beyond this the rest is learnt anew."""


class _Saved(Record):
    sightings: list[Sighting]


class RepairMemory:
    """These methods block: call them from an executor."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[Sighting]:
        """Nothing where there is no file, or none that can be read: that is logged, and no reason not to start."""
        try:
            return unpack(self._path.read_bytes(), _Saved, str(self._path), MAX_KEPT).sightings
        except FileNotFoundError:
            return []
        except (OSError, BadInput) as error:
            log.warning("%s can't be read, repair begins without a memory: %s", self._path, error)
            return []

    def save(self, sightings: Sequence[Sighting]) -> None:
        """Whole or not at all; not synced, for it is made again every few minutes."""
        kept, shards = [], 0
        for sighting in sightings:
            shards += len(sighting.shards)
            if shards <= _MOST_SHARDS:
                kept.append(sighting)
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            partial.write_bytes(pack(_Saved(sightings=kept)))
            os.replace(partial, self._path)
        except OSError as error:
            log.warning("%s can't be written: %s", self._path, error.strerror)
