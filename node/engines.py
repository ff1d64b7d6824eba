"""Which engine this node loads stages into: the owner's choice, and what llama.cpp did to the worker before.

llama.cpp ends its process where it finds a fault in itself. A worker that dies while it loads a model into llama.cpp, or by such a
signal while it runs one, is remembered for that model and precision beyond this node's life: the next load takes torch, and
`explain` says why. Another version of the library, or deleting the file, lets it try again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from node.locate import Located
from protocol.ids import model_text
from runtime.engine_choice import Asked, Choice, choose_here
from runtime.llama.library import VERSION

log = logging.getLogger(__name__)
FILE = "llama-crashes.json"
MOST = 256


class Engines:
    """`asked` auto|torch|llama. `folder`: where crashes are kept; None: nowhere."""

    def __init__(self, asked: str = "torch", folder: Path | None = None) -> None:
        self.asked = asked
        self._path = folder / FILE if folder is not None else None
        self._crashes: dict[str, Any] | None = None

    def choose(self, located: Located, precision: str, *, task: str = "generate", others: int = 0, roomy: bool = True) -> Choice:
        """For a stage of this model; `others` sequences run on it already."""
        if task != "generate":
            return Choice("torch", f"llama.cpp isn't asked to {task[:16]}")
        kind = located.manifest.summary.model_type or ""
        crashed = self._told(self._known().get(_key(model_text(located.model), precision)))
        return choose_here(Asked(self.asked, precision, kind, crashed, others, roomy))

    def crashed(self, model: str, precision: str, how: str) -> None:
        """The worker died with this model (its id as text) in llama.cpp."""
        known = self._known()
        known[_key(model, precision)] = {"how": how[:200], "at": int(time.time()), "version": VERSION}
        while len(known) > MOST:
            known.pop(next(iter(known)))
        fields = {"model": model, "precision": precision, "how": how}
        log.warning("llama.cpp isn't tried again for this model: %s", how, extra={"event": "llama_crashed", "fields": fields})
        if self._path is None:
            return
        try:
            beside = self._path.with_suffix(".new")
            beside.write_text(json.dumps(known))
            os.replace(beside, self._path)
        except OSError as error:
            log.warning("%s can't be written: %s", self._path, error.strerror)

    def _told(self, crash: Any) -> str | None:
        if not isinstance(crash, dict) or crash.get("version") != VERSION:
            return None
        return f"the worker died with this model in llama.cpp before: {str(crash.get('how'))[:200]}; without {FILE} it is tried again"

    def _known(self) -> dict[str, Any]:
        if self._crashes is None:
            self._crashes = _read(self._path) if self._path is not None else {}
        return self._crashes


def _key(model: str, precision: str) -> str:
    return f"{model} {precision}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s can't be read, what it says isn't known: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}
