"""The uploads of this node: begun, received in ranges, handed to the finisher, forgotten after a day.

Each is its uploader's alone: to anybody else it isn't there. All of them together may take as many bytes as the node lends for shards,
and each caller has a few open at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol

from node.transfer.finishing import to_the_end
from node.uploads.spool import Spool
from node.uploads.upload import RUNNING, Incoming, Upload
from protocol import limits
from protocol.errors import BadInput, Busy, Conflict, MfError, NotFound, StorageFull

log = logging.getLogger(__name__)
MOST_OPEN = 4
"""Uploads of one caller that aren't over."""
MOST = 256
KEPT = 86_400.0
"""Seconds that an upload nobody goes on with stays, and that one that is over is told of."""
EVERY = 60.0
SAVE_EACH = 64 * limits.MIB
"""Bytes received after which they are counted durably, also in the middle of a request."""
BUFFER = limits.MIB
AT_ONCE = 2
"""Uploads published and tried side by side."""


class Finisher(Protocol):
    """What becomes of an upload that is complete."""

    async def finish(self, upload: Upload, folder: Path, changed: Callable[[], None]) -> None:
        """Publishes and tries it, telling its stages in `upload`; `MfError` where it fails."""

    def reads(self, upload: Upload) -> bool:
        """Whether its files are still read, though it is over."""


Told = Callable[[Upload], Awaitable[None]]


class Uploads:
    """`open` before anything else. `quota` bounds the bytes of all; `told` hears of each that has ended."""

    def __init__(
        self,
        folder: Path,
        quota: int,
        finisher: Finisher,
        executor: Executor,
        told: Told | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._spool = Spool(folder)
        self._quota = quota
        self._finisher = finisher
        self._executor = executor
        self._told = told
        self._now = now
        self._uploads: dict[str, Upload] = {}
        self._busy: set[tuple[str, str]] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def open(self) -> None:
        """Finds what was under way: what was complete goes on by itself."""
        for upload in await self._in_thread(self._spool.load):
            self._uploads[upload.id] = upload
            if upload.stage in RUNNING:
                self._begin_work(upload)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self) -> None:
        """Forgets what is old, for ever; ends when cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            await self.forget_old()

    async def forget_old(self) -> None:
        for upload in list(self._uploads.values()):
            over = upload.stage in ("finished", "failed")
            if over and not self._finisher.reads(upload):
                await self._in_thread(self._spool.drop_files, upload)
            if upload.stage not in RUNNING and upload.touched < self._now() - KEPT and not self._received(upload):
                await self._drop(upload)

    # What a caller may ask.

    def find(self, who: str, upload_id: str) -> Upload:
        """The caller's own; `NotFound` for another's too."""
        upload = self._uploads.get(upload_id)
        if upload is None or upload.who != who:
            raise NotFound("there is no such upload of yours", hint="GET /api/v1/models/upload lists them")
        return upload

    def mine(self, who: str) -> list[Upload]:
        return [upload for upload in self._uploads.values() if upload.who == who]

    async def begin(self, who: str, name: str, files: list[tuple[str, int, str | None]] | None = None, **more: Any) -> Upload:
        """A new one; `files` (name, bytes, SHA-256) where all are known beforehand. `Busy`: too many, `StorageFull`: no room."""
        mine = [upload for upload in self.mine(who) if upload.stage == "receiving"]
        if len(mine) >= MOST_OPEN or len(self._uploads) >= MOST:
            raise Busy(f"{len(mine)} uploads of yours are open", hint="finish or DELETE one", details={"retry_after": 60})
        now = self._now()
        upload = Upload(id=f"upl_{secrets.token_hex(12)}", who=who, created=now, touched=now, name=name, declared=files is not None, **more)
        upload.secret = secrets.token_bytes(32) if upload.private else None
        for file, size, sha256 in files or ():
            upload.add(file, size, sha256)
        self._check_room(sum(size for _, size, _ in files or ()))
        await self._in_thread(self._spool.save, upload)
        self._uploads[upload.id] = upload
        return upload

    async def receive(self, upload: Upload, name: str, offset: int, size: int | None, pieces: AsyncIterator[bytes]) -> Incoming:
        """Writes `pieces` from `offset` on; what came before a break stays and counts. `size` None: the file ends with them."""
        file = upload.file(name, size)
        if offset > file.received:
            raise Conflict(
                f"{name[:64]!r}: bytes {file.received} to {offset} are missing",
                hint="go on where it ended",
                details={"received": file.received},
            )
        key = (upload.id, name)
        if key in self._busy:
            raise Conflict(f"{name[:64]!r} is being received by another request")
        self._busy.add(key)
        try:
            await self._write(upload, name, file, offset, pieces)
            if file.size is None:
                file.size = file.received
        finally:
            self._busy.discard(key)
            upload.touched = self._now()
            if upload.id in self._uploads:
                await asyncio.shield(self._in_thread(self._spool.save, upload))
        if upload.declared and not upload.missing():
            self.complete(upload)
        return file

    def complete(self, upload: Upload) -> None:
        """Begins to publish it; `Conflict` while bytes are missing."""
        if upload.stage != "receiving":
            return
        if self._received(upload):
            raise Conflict("a file of it is being received")
        upload.ready()
        upload.stage, upload.touched = "reading", self._now()
        self._begin_work(upload)

    async def cancel(self, upload: Upload) -> None:
        """Ends it, whatever it does, and forgets it; what is stored already is taken back by the publish that ends."""
        task = self._tasks.get(upload.id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task}, timeout=10.0)
        await self._drop(upload)

    # Inside.

    async def _write(self, upload: Upload, name: str, file: Incoming, offset: int, pieces: AsyncIterator[bytes]) -> None:
        fd = await self._in_thread(self._spool.open, upload, name)
        file.received, counted = offset, offset
        try:
            async for piece in gathered(pieces):
                end = file.received + len(piece)
                if file.size is not None and end > file.size:
                    raise BadInput(f"{name[:64]!r} has {file.size} bytes, more came", details={"received": file.received})
                if file.size is None:
                    self._check_room(len(piece))
                await to_the_end(
                    asyncio.get_running_loop().run_in_executor(self._executor, self._spool.write, fd, name, piece, file.received)
                )
                file.received, upload.touched = end, self._now()
                if end - counted >= SAVE_EACH:
                    counted = end
                    await self._in_thread(self._spool.save, upload)
        finally:
            await asyncio.shield(self._in_thread(self._spool.settle, fd, name, file))

    def _check_room(self, more: int) -> None:
        taken = sum(max(file.size or 0, file.received) for upload in self._uploads.values() for file in upload.files.values()
                    if upload.stage not in ("finished", "failed"))  # fmt: skip
        if taken + more > self._quota:
            raise StorageFull(f"uploads may take {self._quota} bytes here, {taken} are taken", hint="try a node that lends more")
        if more > self._spool.free():
            raise StorageFull("this node's disk hasn't the room", hint="try a node with more")

    def _received(self, upload: Upload) -> bool:
        return any(upload_id == upload.id for upload_id, _ in self._busy)

    def _begin_work(self, upload: Upload) -> None:
        task = self._tasks[upload.id] = asyncio.create_task(self._work(upload), name=f"upload {upload.id}")
        task.add_done_callback(lambda _: self._tasks.pop(upload.id, None))

    async def _work(self, upload: Upload) -> None:
        upload.validation, upload.failure = [], None
        try:
            async with self._turns:
                await self._in_thread(self._spool.save, upload)
                await self._finisher.finish(upload, self._spool.files(upload), lambda: self._touch(upload))
            upload.stage = "finished"
        except MfError as error:
            upload.stage, upload.failure = "failed", error.to_wire()
        except asyncio.CancelledError:
            raise  # with the node, and then goes on at its next start; or forgotten
        except Exception as error:  # boundary: whatever a model's files make happen is this upload's failure alone
            log.exception("an upload failed", extra={"event": "upload_failed", "fields": {"id": upload.id}})
            upload.stage, upload.failure = "failed", MfError(f"the node failed at it ({type(error).__name__})").to_wire()
        upload.secret = None
        upload.touched = self._now()
        await self._in_thread(self._spool.save, upload)
        if not self._finisher.reads(upload):
            await self._in_thread(self._spool.drop_files, upload)
        if self._told is not None:
            await self._told(upload)

    def _touch(self, upload: Upload) -> None:
        upload.touched = self._now()

    async def _drop(self, upload: Upload) -> None:
        self._uploads.pop(upload.id, None)
        await self._in_thread(self._spool.drop, upload)

    async def _in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *given)


async def gathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """The same bytes in cuts of about a MiB: a write each, not one for every packet."""
    held = bytearray()
    failed: BaseException | None = None
    try:
        async for piece in pieces:
            held += piece
            if len(held) >= BUFFER:
                yield held
                held = bytearray()
    except (MfError, ConnectionError, TimeoutError) as error:  # what came counts, then the break is told
        failed = error
    if held:
        yield held
    if failed is not None:
        raise failed
