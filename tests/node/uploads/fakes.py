"""A finisher that only looks: what it was given, as long as the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from node.uploads.upload import Check, Upload
from protocol.errors import MfError


@dataclass
class FakeFinisher:
    seen: dict[str, bytes] = field(default_factory=dict)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    refuse: MfError | None = None
    reading: bool = False
    runs: int = 0

    def __post_init__(self) -> None:
        self.hold.set()

    def reads(self, upload: Upload) -> bool:
        return self.reading

    async def finish(self, upload: Upload, folder: Path, changed: Callable[[], None]) -> None:
        self.runs += 1
        self.seen = _files(folder)
        upload.stage, upload.done, upload.total = "storing", 1, 2
        changed()
        await self.hold.wait()
        if self.refuse is not None:
            raise self.refuse
        upload.model_id, upload.full_name = "mfm1made", f"ann/{upload.name}@{upload.version}"
        upload.validation.append(Check(name="load", passed=True, detail="as told"))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
