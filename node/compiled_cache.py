"""Compiled layers on this node's disk, for the next start: two libraries each, under the name of what they were compiled for.

They were made here and run here, and lie where the node's keys lie; the digests beside them tell what rotted or was cut short, which is
made again. The last ones used stay.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from blake3 import blake3

from protocol.errors import BadInput
from runtime.compiled_shape import PARTS

MOST = 16
_DIGESTS = "digests.json"
_NAME = re.compile("[0-9a-f]{32}")
log = logging.getLogger(__name__)


class CompiledCache:
    """`folder` is made when the first one comes. All of it is blocking: for an executor."""

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self._folder, self._most = folder, most

    def open(self, name: str) -> tuple[list[int], list[int]] | None:
        """Descriptors, the caller's to close, and lengths in the order of `PARTS`; None where it isn't here or isn't whole."""
        place = self._place(name)
        try:
            wanted = json.loads((place / _DIGESTS).read_bytes())
            found = {part: (place / f"{part}.so").read_bytes() for part in PARTS}
        except (OSError, ValueError):
            return None
        if not isinstance(wanted, dict) or any(blake3(data).hexdigest() != wanted.get(part) for part, data in found.items()):
            log.warning("the compiled layers %s are damaged and are made again", name, extra={"event": "compiled_damaged"})
            shutil.rmtree(place, ignore_errors=True)
            return None
        os.utime(place)
        return [os.open(place / f"{part}.so", os.O_RDONLY | os.O_CLOEXEC) for part in PARTS], [len(found[part]) for part in PARTS]

    def put(self, name: str, made: Path) -> None:
        """Takes the libraries out of the folder `made`; whole or not at all. `OSError` where the disk has no room."""
        place = self._place(name)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            digests = {}
            for part in PARTS:
                data = (made / f"{part}.so").read_bytes()
                (new / f"{part}.so").write_bytes(data)
                digests[part] = blake3(data).hexdigest()
            (new / _DIGESTS).write_text(json.dumps(digests))
            shutil.rmtree(place, ignore_errors=True)
            new.rename(place)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        self._keep_last(name)

    def names(self) -> list[str]:
        """The last used first."""
        places = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)] if self._folder.is_dir() else []
        return [path.name for path in sorted(places, key=lambda path: path.stat().st_mtime, reverse=True)]

    def _keep_last(self, name: str) -> None:
        for old in [one for one in self.names() if one != name][self._most - 1 :]:
            shutil.rmtree(self._folder / old, ignore_errors=True)
        for left in self._folder.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _place(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise BadInput("a compiled form's name has 32 hexadecimal digits")
        return self._folder / name
