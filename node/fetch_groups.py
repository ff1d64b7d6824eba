"""Single groups into files of their own: each group's plain bytes, compared with the manifest, under the group's name.

What lies where in such a file comes with the answer: a group's bytes are its tensors, each at a multiple of 64, so a reader maps
them without parsing anything. A file gets its name only when it is whole.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from node.assemble import Assembler, GroupBytes
from node.locate import Located
from node.owner import Notify
from protocol import limits
from protocol.errors import BadInput, Conflict, StorageFull
from protocol.layout import stage_tensors
from protocol.manifest import Manifest

_COPY = 8 * limits.MIB


async def fetch_groups(
    assembler: Assembler, executor: Executor, located: Located, groups: Sequence[int], directory: Path, notify: Notify
) -> tuple[list[dict[str, Any]], int]:
    """Per group {"group", "path", "bytes", "tensors"}, and bytes over the network. `Conflict` where a file lies in the way. Files made
    before a failure are removed."""
    loop = asyncio.get_running_loop()
    made: list[Path] = []
    received = 0
    total = sum(located.manifest.groups[group].length for group in groups)
    try:
        for group in groups:
            path = directory / located.manifest.groups[group].name
            room = await assembler.group(located, group)
            received += room.received
            try:
                made.append(await loop.run_in_executor(executor, write_group, room, path))
            finally:
                room.close()
            done = sum(located.manifest.groups[group].length for group in groups[: len(made)])
            await notify({"event": "progress", "stage": "fetch", "done": done, "total": total})
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return [describe(located.manifest, group, path) for group, path in zip(groups, made, strict=True)], received


def write_group(room: GroupBytes, path: Path) -> Path:
    """Copies the group to `path`, which must not exist."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            raise Conflict(f"{path}: lies there already", hint="give an empty or a new folder")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as out, os.fdopen(os.dup(room.fd), "rb") as source:
            source.seek(0)
            shutil.copyfileobj(source, out, _COPY)
        os.rename(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        text = f"{path}: can't be written: {error.strerror}"
        raise StorageFull(text) if error.errno in (28, 122) else BadInput(text, hint="give a folder that can be written") from error
    return path


def describe(manifest: Manifest, group: int, path: Path) -> dict[str, Any]:
    tensors = [
        {"name": slot.tensor.name, "dtype": slot.tensor.dtype, "shape": slot.tensor.shape, "at": slot.cut.at, "length": slot.cut.length}
        for slot in stage_tensors(manifest, [group])
    ]
    entry = manifest.groups[group]
    return {"group": entry.name, "path": str(path), "bytes": entry.length, "tensors": tensors}
