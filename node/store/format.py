"""The number of a data directory's layout, and the way from each number to the next and back.

A step adds what the newer layout needs beside what is there (hard links where bytes are the same) and changes nothing: until
the number is written, and after it is taken back, the older program finds all of its own. A step may be killed anywhere and
is then done again, so it must bear finding its own beginnings. Rejected: changing files in place (a kill leaves neither
layout), a copy of the whole directory (twice the room on a disk that is lent to its limit).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from node.store.durable import disk_errors, write_file
from protocol.errors import BadInput, Conflict

FORMAT = 1


@dataclass(frozen=True)
class Step:
    """From one number to the next: `up` adds the newer layout, durably; `down` removes what `up` added."""

    up: Callable[[Path], None]
    down: Callable[[Path], None]


STEPS: Mapping[int, Step] = {}
"""By the number they start from. The first format has nothing before it."""


def open_format(root: Path) -> None:
    """Makes the directory and its `format` file when absent; `Conflict` for a newer number, `BadInput` where it can't be used."""
    with disk_errors(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(root, os.W_OK | os.X_OK):
        raise BadInput(
            f"the data directory {root} is not writable", hint="give this user the right to write there, or choose another with --data-dir"
        )
    number = _read(root)
    if number > FORMAT:
        raise Conflict(
            f"the data directory {root} has format {number}, this mf-node knows formats up to {FORMAT}", hint="use a newer mf-node"
        )
    upgrade(root, number, FORMAT, STEPS)


def _read(root: Path) -> int:
    path = root / "format"
    with disk_errors(path):
        if not path.exists():
            _write(root, FORMAT)
        text = path.read_text(errors="replace").strip()[:64]
    if not (text.isascii() and text.isdigit()):
        raise BadInput(f"{path} holds {text!r} instead of a number: not a data directory of mf-node", hint="choose another with --data-dir")
    return int(text)


def _write(root: Path, number: int) -> None:
    write_file(root / "format", f"{number}\n".encode(), root)


def upgrade(root: Path, number: int, to: int, steps: Mapping[int, Step]) -> None:
    """Takes a directory of format `number` to format `to`, a step at a time; each counts once its number is written."""
    with disk_errors(root, writing=True):
        for at in range(number, to):
            steps[at].up(root)
            _write(root, at + 1)


def revert(root: Path, to: int, steps: Mapping[int, Step] = STEPS) -> None:
    """Takes it back to format `to`, for an older program. The number goes first: what the step added is nobody's from then on."""
    with disk_errors(root, writing=True):
        for at in range(_read(root) - 1, to - 1, -1):
            _write(root, at)
            steps[at].down(root)
