"""The number of a data directory's layout, so that an older program never touches a newer directory."""

from __future__ import annotations

import os
from pathlib import Path

from node.store.durable import disk_errors, write_file
from protocol.errors import BadInput, Conflict

FORMAT = 1


def open_format(root: Path) -> None:
    """Makes the directory and its `format` file when absent; `Conflict` for a newer number, `BadInput` where it can't be used."""
    with disk_errors(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(root, os.W_OK | os.X_OK):
        raise BadInput(
            f"the data directory {root} is not writable", hint="give this user the right to write there, or choose another with --data-dir"
        )
    path = root / "format"
    with disk_errors(path):
        if not path.exists():
            write_file(path, f"{FORMAT}\n".encode(), root)
        text = path.read_text(errors="replace").strip()[:64]
    if not (text.isascii() and text.isdigit()):
        raise BadInput(f"{path} holds {text!r} instead of a number: not a data directory of mf-node", hint="choose another with --data-dir")
    if int(text) > FORMAT:
        raise Conflict(
            f"the data directory {root} has format {text}, this mf-node knows formats up to {FORMAT}", hint="use a newer mf-node"
        )
