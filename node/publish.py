"""Publish: files -> manifest -> groups -> shards at peers, durable before we say so.

    read -> name by content -> code each group into n shards -> place -> push -> card -> announce

Encodings of equal groups that other models have are looked for first (`node/reuse.py`): such a group is neither coded nor sent, its
holders are told at the end that it belongs to this model too. Coding is deterministic and encodings are signed by this node,
so an interrupted publish is resumed by doing it again: the same encodings come out, and shards already announced by reachable
holders are not sent twice. Returns when n shards of every group are durable, or thirty seconds after r = k + ceil((n-k)/2) of each
are; the rest then goes on in the daemon (`node/unfinished.py`). With fewer than r reachable: `StorageFull`, and what was stored for it
is taken back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasure.durability import choose_k_n
from node.convert_gguf import GgufConverter
from node.gguf_files import model_name
from node.locate import Located, Locator
from node.model_folder import ModelFolder, scan
from node.model_manifest import build_manifest
from node.owner import Notify
from node.place import Placer
from node.reuse import Reuser
from node.source import GroupSource
from node.swarm.interface import Swarm
from node.tally import Tally
from node.transfer.remote import Transfer
from node.unfinished import Unfinished
from protocol import limits
from protocol.errors import BadInput, StorageFull
from protocol.ids import ModelId, model_text
from protocol.manifest import Manifest, manifest_bytes, model_id
from protocol.private import cover_of
from protocol.records import NAME, Card

log = logging.getLogger(__name__)
AFTER_R = 30.0
AT_ONCE = 3
"""Groups coded and pushed side by side: coding one overlaps with pushing another."""

BEYOND = 16
"""Groups that wait, beside those, for their last shards alone; they are staged as long."""


@dataclass(frozen=True)
class PrivatePublish:
    """Under `secret`, 32 bytes; `announce` tells the readers in place of a card."""

    secret: bytes
    announce: Callable[[ModelId, Card], Awaitable[None]]


@dataclass(frozen=True)
class PublishRequest:
    """`name` None takes the folder's; `k`, `n` None lets the durability chooser decide; `n_max` is how many shards an encoding commits
    to, None: n; `compression` auto, raw or fast; `gguf` says what becomes of GGUF files: "dequantise" (to bf16, so that they run) or
    "keep" (stored as they are); None where there are none."""

    path: Path
    name: str | None = None
    version: str = "1"
    k: int | None = None
    n: int | None = None
    n_max: int | None = None
    compression: str = "auto"
    gguf: str | None = None
    description: str | None = None
    license: str | None = None
    private: PrivatePublish | None = None


class Publisher:
    def __init__(
        self,
        swarm: Swarm,
        transfer: Transfer,
        locator: Locator,
        placer: Placer,
        reuser: Reuser,
        converter: GgufConverter,
        unfinished: Unfinished,
        executor: Executor,
        label: str,
    ) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._placer = placer
        self._reuser = reuser
        self._converter = converter
        self._unfinished = unfinished
        self._executor = executor
        self._label = label

    async def publish(self, request: PublishRequest, notify: Notify) -> dict[str, Any]:
        """The command's result; see docs/CLI.md for its fields."""
        started = time.monotonic()
        name = check_name(request.name or model_name(request.path.resolve().name if request.path.is_dir() else request.path.name))
        check_name(request.version)
        k, n, words = self._choose(request)
        async with AsyncExitStack() as opened:
            folder = await opened.enter_async_context(self._folder(request, notify))
            return await self._publish(opened, folder, request, name, Tally(k, n, self._committed(request, n)), words, started, notify)

    @asynccontextmanager
    async def _folder(self, request: PublishRequest, notify: Notify) -> AsyncIterator[ModelFolder]:
        """The files to publish: those given, or what becomes of a GGUF file."""
        loop = asyncio.get_running_loop()
        folder = await loop.run_in_executor(self._executor, scan, request.path)
        if not folder.gguf:
            if request.gguf is not None:
                raise BadInput("--gguf says what becomes of GGUF files; this model's weights are safetensors")
            yield folder
        elif request.gguf == "keep":
            await notify({"event": "note", "text": "the GGUF file is stored as it is, tensors quantised: it can be fetched, not run here"})
            yield folder
        else:
            async with self._converter.dequantised(folder, notify) as made:
                yield await loop.run_in_executor(self._executor, scan, made)

    async def _publish(
        self,
        opened: AsyncExitStack,
        folder: ModelFolder,
        request: PublishRequest,
        name: str,
        tally: Tally,
        words: str,
        started: float,
        notify: Notify,
    ) -> dict[str, Any]:
        manifest, data = await self._read(folder, notify)
        shown, data = (manifest, data) if request.private is None else await self._covered(request.private, data)
        model = model_id(data)
        await notify({"event": "note", "text": words})
        await self._unfinished.end(model)
        located = await self._prepare(model, shown, data, request.private, manifest)
        source = opened.enter_context(GroupSource(folder, manifest))
        try:
            left = await self._spread(located, source, request, tally, notify)
        except (BadInput, StorageFull):  # the files changed, or no room to code them: nobody can go on with what is there
            await self._take_back(located, tally)
            raise
        card = self._card(request, name, model, manifest)
        if left:
            self._unfinished.go_on(model, card.full_name(), tally, left, opened.pop_all(), tally.n * len(manifest.groups))
        try:
            await self._finish(located, tally)
            await self._reuser.tell(located, tally)
            await self._finish(located, tally)
            await (self._swarm.put_card(card) if request.private is None else request.private.announce(model, card))
        except BaseException:
            await self._unfinished.end(model)
            raise
        log.info("published", extra={"event": "published", "fields": {"model": model_text(model), "shards": tally.shards()}})
        return self._result(model, card.full_name(), manifest, tally, time.monotonic() - started)

    async def _read(self, folder: ModelFolder, notify: Notify) -> tuple[Manifest, bytes]:
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int) -> None:
            event = {"event": "progress", "stage": "read", "done": done, "total": total}
            asyncio.run_coroutine_threadsafe(notify(event), loop)

        return await loop.run_in_executor(self._executor, build_manifest, folder, progress)

    def _choose(self, request: PublishRequest) -> tuple[int, int, str]:
        nodes = self._placer.bearing()
        if (request.k is None) != (request.n is None):
            raise BadInput("give both --k and --n, or neither")
        if request.k is None or request.n is None:
            choice = choose_k_n(nodes)
            return choice.k, choice.n, choice.words
        if not 1 <= request.k <= request.n <= limits.MAX_SHARDS:
            raise BadInput(f"k and n must keep 1 <= k <= n <= {limits.MAX_SHARDS}, not k={request.k}, n={request.n}")
        enough = Tally(request.k, request.n).enough
        if nodes < enough:
            said = f"k={request.k}, n={request.n} needs {enough} nodes that lend storage; {nodes} can be reached, this one included"
            new = sum(candidate.new for candidate in self._placer.candidates())
            unknown = f"; of the {new} known for less than a day only one counts: `mf-node trust` those you know" if new > 1 else ""
            raise StorageFull(said, hint=f"let more peers join, or lower --n{unknown}", details={"refusals": {}})
        return request.k, request.n, f"any {request.k} of {request.n} shards, as asked"

    @staticmethod
    def _committed(request: PublishRequest, n: int) -> int:
        """Shards that each encoding commits to, so that they can be made later."""
        if request.n_max is None:
            return n
        if not n <= request.n_max <= min(2 * n, limits.MAX_SHARDS):
            raise BadInput(f"n_max must keep n <= n_max <= 2n, at most {limits.MAX_SHARDS}, not n={n}, n_max={request.n_max}")
        return request.n_max

    async def _covered(self, private: PrivatePublish, data: bytes) -> tuple[Manifest, bytes]:
        """What others see of a private model's manifest, and its bytes."""
        loop = asyncio.get_running_loop()
        cover = await loop.run_in_executor(self._executor, cover_of, private.secret, data, self._placer.me)
        return cover, manifest_bytes(cover)

    async def _prepare(self, model: ModelId, shown: Manifest, data: bytes, private: PrivatePublish | None, manifest: Manifest) -> Located:
        await self._transfer.put_blob(data)
        located = self._locator.remember(model, shown, data)
        if private is not None:
            located.uncover(manifest, private.secret, self._placer.me)
        if self._swarm.holdings(model):
            located = await self._locator.locate(model)
        if private is None:  # a private group is equal to none
            await self._reuser.gather(located)
        return located

    async def _spread(
        self, located: Located, source: GroupSource, request: PublishRequest, tally: Tally, notify: Notify
    ) -> list[asyncio.Task[None]]:
        """Until enough is durable; what still runs then, to be waited for."""
        limit = asyncio.Semaphore(AT_ONCE)
        groups = located.coded
        total = len(groups) * tally.n
        first: dict[bytes, int] = {}
        for number, entry in enumerate(groups):
            tally.durable[number] = tally.durable.get(first.setdefault(entry.id, number), {})

        beyond: set[int] = set()

        async def one(group: int) -> None:
            async with AsyncExitStack() as turn:
                await turn.enter_async_context(limit)
                if tally.short():
                    return  # a group has no home: the others needn't be coded and sent to be taken back

                async def counted() -> None:
                    if tally.nodes(group) >= tally.enough and len(beyond) < BEYOND:
                        beyond.add(group)
                        await turn.aclose()  # only slow nodes are left to be waited for: the next groups don't wait for them
                    await on_shard()

                await self._placer.place_group(located, group, source, request.compression, tally, counted)
                tally.ended.add(group)
            beyond.discard(group)

        told: list[Notify] = [notify]

        async def on_shard() -> None:
            for tell in told:  # nobody, once the command has returned
                await tell({"event": "progress", "stage": "store", "done": tally.shards(), "total": total})

        tasks = [asyncio.create_task(one(group)) for group in first.values()]
        try:
            await self._until_durable(tasks, tally)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        told.clear()
        return [task for task in tasks if not task.done()]

    async def _until_durable(self, tasks: list[asyncio.Task[None]], tally: Tally) -> None:
        """All tasks done, or AFTER_R seconds after r shards of every group are durable."""
        loop = asyncio.get_running_loop()
        pending: set[asyncio.Task[None]] = set(tasks)
        enough_at: float | None = None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=0.25, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if tally.least() >= tally.enough:
                enough_at = enough_at or loop.time()
                if loop.time() - enough_at > AFTER_R:
                    return

    async def _finish(self, located: Located, tally: Tally) -> None:
        short = tally.short()
        if not short:
            return
        await self._take_back(located, tally)
        name, nodes = located.manifest.groups[short[0]].name, len(self._placer.candidates())
        raise StorageFull(
            f"{tally.nodes(short[0])} of {nodes} nodes took a shard of group {name}, {tally.enough} are needed; nothing of it stays",
            hint="give nodes more --storage, let more peers join, or lower --n",
            details={"groups": [located.manifest.groups[group].name for group in short[:16]], "refusals": tally.refusals},
        )

    async def withdraw(self, model: ModelId) -> None:
        """Whose names were withdrawn: every holder in reach drops what this node put there. Those away keep it until its lease ends."""
        located = await self._locator.locate(model, keep=False)
        await self._take_back(located, Tally(1, 1))
        log.info("withdrawn", extra={"event": "withdrawn", "fields": {"model": model_text(model)}})

    async def _take_back(self, located: Located, tally: Tally) -> None:
        await self._unfinished.end(located.model)
        await self._placer.take_back(located, tally, self._published(located.model))
        self._locator.forget(located.model)

    def _published(self, model: ModelId) -> bool:
        """Whether an earlier publish of this very model stands."""
        me = self._placer.me
        named = [view.card.model for view in self._swarm.cards_of(me)]
        return model in [*named, *(view.record.model for view in self._swarm.readers() if view.publisher == me)]

    def _card(self, request: PublishRequest, name: str, model: ModelId, manifest: Manifest) -> Card:
        now, before = time.time(), self._named(name, request.version)
        return Card(
            sequence=time.time_ns(),
            expires=int(now) + limits.CARD_LIFETIME,
            label=self._label,
            name=name,
            version=request.version,
            model=model,
            size=manifest.size(),
            parameters=manifest.parameters,
            created=int(now) if before is None else before.created,
            summary=manifest.summary,
            license=request.license,
            description=request.description,
            updated=None if before is None else int(now),
        )

    def _named(self, name: str, version: str) -> Card | None:
        """The card that this node published under the name before."""
        own = (view.card for view in self._swarm.cards_of(self._placer.me))
        return next((card for card in own if (card.name, card.version) == (name, version)), None)

    def _result(self, model: ModelId, name: str, manifest: Manifest, tally: Tally, seconds: float) -> dict[str, Any]:
        return {
            "model_id": model_text(model),
            "name": name,
            "groups": len(manifest.groups),
            "k": tally.k,
            "n": tally.n,
            "shards": tally.n * len(manifest.groups),
            "bytes": manifest.size(),
            "stored_bytes": tally.stored_bytes(),
            "saved_bytes": sum(tally.saved.values()),
            "peers": len(tally.holders()),
            "seconds": round(seconds, 3),
            "durable": tally.shards(),
            "survives_losses": tally.survives_losses(self._placer.domains()),
        }


def check_name(name: str) -> str:
    """The name, or `BadInput` with the rule."""
    if not NAME.match(name):
        raise BadInput(f"{name[:96]!r} can't be a name: letters, digits, '.', '_' and '-', at most 96", hint="give one with --name")
    return name
