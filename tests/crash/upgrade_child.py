"""The process that takes a directory of format 1 to a format 2, or back, and is killed: FOLDER, up or down.

Format 2 is made up: the same bytes under names of a new layout, by hard links, as a real one would do it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from node.store.durable import sync_folder
from node.store.format import Step, revert, upgrade
from protocol.errors import MfError
from tests.crash.child import say


def link_into(folder: str) -> Step:
    def up(root: Path) -> None:
        (root / folder).mkdir(exist_ok=True)
        for path in sorted((root / "shards").iterdir()):
            if not (root / folder / path.name).exists():
                (root / folder / path.name).hardlink_to(path)
        sync_folder(root / folder)

    def down(root: Path) -> None:
        shutil.rmtree(root / folder, ignore_errors=True)

    return Step(up, down)


STEPS = {1: link_into("second")}


def main(folder: str, way: str) -> None:
    try:
        if way == "up":
            upgrade(Path(folder), 1, 2, STEPS)
        else:
            revert(Path(folder), 1, STEPS)
        say("ack 0")
    except MfError as error:
        say(f"no 0 {error.code}")
