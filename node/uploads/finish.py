"""What becomes of a complete upload: published as any folder is, then tried. Every check that it reports really ran, or says why it didn't.

    header_check  every header read and held against its file           (node/model_folder.py, while the manifest is made)
    hashes        declared SHA-256s, and every group read back from its shards and compared with the manifest
    load          the whole model in this node's worker
    stage_self_test   what the worker tries of a stage before it is used  (runtime/self_test.py)
    generation    8 tokens, as anybody would ask for them

A model that can't be run here (weights alone, too large for this node, an encoder) is published all the same: its checks say so.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any

from node.gateway import Finished, GenerationRequest
from node.gather import Groups
from node.generate import Generator
from node.locate import Located, Locator
from node.owned_models import OwnedModels
from node.private.sharing import Sharing
from node.publish import PrivatePublish, Publisher, PublishRequest
from node.stage_room import StageRoom
from node.unfinished import Unfinished
from node.uploads.upload import Check, Upload
from protocol import limits
from protocol.errors import BadInput, MfError
from protocol.ids import ModelId, model_from
from protocol.messages import Sampling
from protocol.records import Card

log = logging.getLogger(__name__)
TOKENS = 8
TRY_WITHIN = 600.0
_PROMPT = "The capital of France is"
_PRECISION = "bf16"


class UploadFinisher:
    """Implements `node.uploads.uploads.Finisher`."""

    def __init__(
        self,
        publisher: Publisher,
        owned: OwnedModels,
        sharing: Sharing,
        unfinished: Unfinished,
        locator: Locator,
        groups: Groups,
        room: StageRoom,
        generator: Generator,
        executor: Executor,
        compression: str = "auto",
    ) -> None:
        self._publisher = publisher
        self._owned = owned
        self._sharing = sharing
        self._unfinished = unfinished
        self._locator = locator
        self._groups = groups
        self._room = room
        self._generator = generator
        self._executor = executor
        self._compression = compression

    def reads(self, upload: Upload) -> bool:
        return any(line["model_id"] == upload.model_id for line in self._unfinished.lines())

    async def finish(self, upload: Upload, folder: Path, changed: Callable[[], None]) -> None:
        if not upload.private:
            self._owned.check_name(upload.who, upload.name, upload.version)
        run = _Run(upload, changed)
        await self._declared(run, folder)
        told = await self._publish(run, folder)
        model = model_from(told["model_id"])
        upload.model_id, upload.full_name = told["model_id"], told["name"]
        if not upload.private:
            await self._owned.add(upload.who, upload.name, upload.version, model)
        run.step("checking", 0, 4)
        await self._read_back(run, await self._locator.locate(model))
        await self._try(run, model)

    async def _declared(self, run: _Run, folder: Path) -> None:
        """The files against the SHA-256s they were announced with: `BadInput` names the one that differs."""
        given = {name: file.sha256 for name, file in run.upload.files.items() if file.sha256 is not None}
        run.declared = len(given)
        for name, wanted in given.items():
            found = await asyncio.get_running_loop().run_in_executor(self._executor, _sha256, folder / name)
            if found != wanted.lower():
                run.note("hashes", False, f"{name[:64]} isn't what was declared", 0.0)
                raise BadInput(f"{name[:64]!r} has SHA-256 {found}, {wanted} was declared", hint="upload it again")

    async def _publish(self, run: _Run, folder: Path) -> dict[str, Any]:
        upload, began = run.upload, time.monotonic()
        request = PublishRequest(
            path=folder,
            name=upload.name,
            version=upload.version,
            compression=self._compression,
            gguf=upload.gguf,
            description=upload.description,
            license=upload.license,
            private=self._private(upload),
        )
        try:
            told = await self._publisher.publish(request, run.notify)
        except BadInput as error:
            if upload.stage == "reading":
                run.note("header_check", False, error.message, time.monotonic() - began)
            raise
        upload.coding = {name: told[name] for name in ("groups", "k", "n", "bytes", "stored_bytes", "saved_bytes")}
        upload.distribution = {name: told[name] for name in ("shards", "durable", "peers", "survives_losses")}
        return told

    def _private(self, upload: Upload) -> PrivatePublish | None:
        if not upload.private or upload.secret is None:
            return None
        secret, owner = upload.secret, self._sharing.owner_of(upload.who)

        async def announce(model: ModelId, card: Card) -> None:
            await self._sharing.begin(model, secret, owner, card)

        return PrivatePublish(secret, announce)

    async def _read_back(self, run: _Run, located: Located) -> None:
        manifest = located.manifest
        run.note(
            "header_check", True, f"{len(manifest.files)} files, {len(manifest.tensors)} tensors in {len(manifest.groups)} groups", 0.0
        )
        async with run.check("hashes") as seen:
            for number in range(len(manifest.groups)):
                with closing(await self._groups.group(located, number)):
                    run.changed()
            seen.append(f"{len(manifest.groups)} groups read back from their shards are the manifest's; {run.declared} SHA-256 compared")
        run.step("checking", 1, 4)

    async def _try(self, run: _Run, model: ModelId) -> None:
        located = await self._locator.locate(model)
        checked = ""
        async with run.check("load") as seen, self._room.reply(located, _PRECISION, secrets.token_hex(16), 64) as stage:
            seen.append(f"{stage.bytes} bytes of weights in {_PRECISION}")
            checked = stage.checked
        run.note("stage_self_test", True if checked else None, checked or "not run: it didn't load", 0.0)
        run.step("checking", 2, 4)
        if run.passed("load") is False and not run.too_large:
            run.note("generation", None, "not run: it doesn't load", 0.0)
            return
        async with run.check("generation") as seen:
            seen.append(await self._eight(run.upload.model_id or ""))
        run.step("checking", 4, 4)

    async def _eight(self, model: str) -> str:
        wanted = GenerationRequest(model=model, sampling=Sampling(), max_tokens=TOKENS, text=_PROMPT, timeout=TRY_WITHIN)
        async with aclosing(self._generator.generate(wanted)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    where = "here" if len(event.route) == 1 and event.route[0]["here"] else f"over {len(event.route)} nodes"
                    return f"{event.completion_tokens} tokens {where} ({event.reason})"
        raise MfError("the generation ended without a word")


class _Run:
    """One upload's way through, told as it goes."""

    def __init__(self, upload: Upload, changed: Callable[[], None]) -> None:
        self.upload = upload
        self.changed = changed
        self.declared = 0
        self.too_large = False

    async def notify(self, event: dict[str, Any]) -> None:
        """What publishing says of itself."""
        if event.get("event") == "note":
            self.upload.coding = self.upload.coding | {"words": str(event["text"])}
        elif event.get("event") == "progress":
            self.step("storing" if event["stage"] == "store" else "reading", int(event["done"]), int(event["total"]))
            if event["stage"] == "store":
                self.upload.distribution = {"durable": event["done"], "shards": event["total"]}

    def step(self, stage: Any, done: int, total: int) -> None:
        self.upload.stage, self.upload.done, self.upload.total = stage, done, total
        self.changed()

    def note(self, name: str, passed: bool | None, detail: str, seconds: float) -> None:
        self.upload.validation.append(Check(name=name, passed=passed, detail=detail, seconds=round(seconds, 3)))
        self.changed()

    def passed(self, name: str) -> bool | None:
        return next((check.passed for check in self.upload.validation if check.name == name), None)

    @asynccontextmanager
    async def check(self, name: str) -> AsyncIterator[list[str]]:
        """A check whose failure is its result; what it says goes into the list given."""
        began, seen = time.monotonic(), list[str]()
        try:
            async with asyncio.timeout(TRY_WITHIN):
                yield seen
        except MfError as error:
            self.too_large = self.too_large or "needed" in error.details
            self.note(name, False, error.message, time.monotonic() - began)
        except TimeoutError:
            self.note(name, False, f"not done within {TRY_WITHIN:g} s", time.monotonic() - began)
        else:
            self.note(name, True, "; ".join(seen), time.monotonic() - began)


def _sha256(path: Path) -> str:
    hasher, room = hashlib.sha256(), memoryview(bytearray(4 * limits.MIB))
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while read := os.readv(fd, [room]):
            hasher.update(room[:read])
    finally:
        os.close(fd)
    return hasher.hexdigest()
