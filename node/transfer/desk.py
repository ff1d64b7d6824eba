"""What the transfer process does for its node: one method for each call on the channel.

Everything that touches files runs in the named executors: `files` for the store and the server, `coding` for compressing,
coding and hashing, so that a long group never keeps a peer's read waiting.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.channel import Channel, Method
from node.store.disk import DiskStore
from node.store.interface import ShardInfo, ShardKey
from node.store.scrub import verify
from node.transfer import audit_reads, calls
from node.transfer.admission import ExpectedPut, ExpectedPuts
from node.transfer.decoders import Decoders
from node.transfer.encode import encode_group
from node.transfer.fetch import fetch_group
from node.transfer.give_way import Pace
from node.transfer.jobs import Encoded, EncodeGroup, Fetched, FetchGroup, KeepShard, PushShard, RebuildShards, TransferConfig, converted
from node.transfer.push import push_shard
from node.transfer.rebuild import rebuild_shards
from node.transfer.server import TransferServer, tls_context
from node.transfer.sources import Access, Callbacks, Connections, Evidence
from node.transfer.staging import Staging
from node.transfer.upkeep import Upkeep
from protocol import limits
from protocol.errors import BadInput, Conflict, MfError, Unavailable
from protocol.ids import EncodingId, ModelId

T = TypeVar("T")
CALLBACK_WITHIN = 10.0
GIVES_WAY_MOST = 10.0
"""Seconds that one notice of a worker at work counts."""


def environment() -> dict[str, str]:
    """Of a process started by this one: its own, which has been cleared of what isn't needed already."""
    return dict(os.environ)


class Desk:
    """Unconfigured until `configure`; every other call before it is refused."""

    def __init__(self, log_form: str = "text", pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._channel: Channel | None = None
        self._started = False
        self._upkeep: list[asyncio.Task[None]] = []
        self._files = ThreadPoolExecutor(4, thread_name_prefix="shard-files")
        self._coding = ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="coding")
        self._connections = Connections()
        self._decoders = Decoders(self._connections.slots, environment, log_form)
        self._expected = ExpectedPuts(time.monotonic)

    def attach(self, channel: Channel) -> None:
        self._channel = channel

    def methods(self) -> dict[str, Method]:
        """What the channel serves."""
        asks: list[tuple[Callable[[Any], Awaitable[Any]], type[Any]]] = [
            (self.put_blob, calls.Blob), (self.get_blob, calls.Blob), (self.has_blob, calls.Blob), (self.add_model, calls.ModelBlobs),
            (self.share, calls.ModelBlobs),
            (self.models, calls.ModelRef), (self.list_shards, calls.ModelRef), (self.has_shard, calls.ShardRef),
            (self.shard_lengths, calls.ShardRefs),
            (self.drop_shard, calls.ShardRef), (self.verify_shard, calls.ShardRef), (self.forget, calls.ModelRef),
            (self.space, calls.ModelRef), (self.stat, calls.ModelRef), (self.expect_put, calls.ShardEntry),
            (self.push_shard, PushShard), (self.keep_shard, KeepShard), (self.list_staged, calls.ModelRef),
            (self.drop_staged, calls.EncodingRef), (self.take_back, calls.ShardRef),
            (self.audit_walk, calls.AuditWalk), (self.audit_show, calls.AuditShow),
            (self.pin, calls.PinModel), (self.pins, calls.ModelRef), (self.renew, calls.ShardRefs),
            (self.give_way, calls.GiveWay),
        ]  # fmt: skip
        table: dict[str, Method] = {method.__name__: self._method(method, kind) for method, kind in asks}
        table["configure"] = self._configure
        table["encode_group"] = self._with_files(self._encode)
        table["fetch_group"] = self._with_files(self._fetch)
        table["rebuild_shards"] = self._method(self.rebuild_shards, RebuildShards)
        return table

    def _method(self, method: Callable[[Any], Awaitable[Any]], kind: type[Any]) -> Method:
        async def serve(params: Any, fds: list[int]) -> Any:
            for fd in fds:
                os.close(fd)
            self._check_started()
            return await method(converted(params, kind))

        return serve

    def _with_files(self, method: Callable[[Any, list[int]], Awaitable[Any]]) -> Method:
        async def serve(params: Any, fds: list[int]) -> Any:
            try:
                self._check_started()
                return await method(params, fds)
            finally:
                for fd in fds:
                    os.close(fd)

        return serve

    def _check_started(self) -> None:
        if not self._started:
            raise Unavailable("the transfer process isn't configured yet", hint="ask again in a moment")

    async def _configure(self, params: Any, fds: list[int]) -> calls.Started:
        config = converted(params, TransferConfig)
        host, _, port = config.listen.rpartition(":")
        if not (host and port.isdigit() and int(port) < 65536):
            raise BadInput(f"the transfer address is HOST:PORT, not {config.listen!r}")
        self._key = Ed25519PrivateKey.from_private_bytes(config.signing_key)
        self._peer_id = config.peer_id
        self._staging = Staging(Path(config.data_dir) / "staging")
        self._connections.slots.path = Path(config.data_dir) / "windows"
        self._store = DiskStore(Path(config.data_dir), config.quota)
        await self._in_files(self._store.open)
        await self._in_files(self._staging.clean)
        self._server = TransferServer(self._store, self._key, self._files, self._expected, self._shard_stored)
        context = await self._in_files(tls_context, config.tls_key, config.tls_cert)
        try:
            bound = await self._server.start(host.strip("[]"), int(port), context)
        except OSError as error:
            raise Conflict(
                f"can't listen for transfers on {config.listen}: {error.strerror}", hint="choose another with --transfer"
            ) from error
        self._started = True
        self._begin_upkeep(config.scrub_rate)
        return calls.Started(port=bound)

    def _begin_upkeep(self, rate: int) -> None:
        async def gone(model: ModelId) -> None:
            await self._tell("shards_gone", calls.ModelRef(model=model))

        upkeep = Upkeep(self._store, self._server.reads, self._in_files, gone, rate, time.time, Random())
        self._upkeep = [asyncio.create_task(upkeep.collect_for_ever(), name="collect")]
        self._upkeep.append(asyncio.create_task(upkeep.scrub_for_ever(), name="scrub"))

    async def stop(self) -> None:
        """Ends the server and closes the store; what was acknowledged is durable already."""
        if self._started:
            for task in self._upkeep:
                task.cancel()
            await asyncio.gather(*self._upkeep, return_exceptions=True)
            await self._server.stop()
            await self._decoders.stop()
            await self._connections.close()
            self._store.close()

    async def _in_files(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)

    # The node is told.

    async def _call(self, method: str, params: Any, kind: type[T]) -> T:
        if self._channel is None:
            raise MfError("the transfer process has no channel to its node")
        return await self._channel.call(method, params, kind, timeout=CALLBACK_WITHIN)

    async def _tell(self, method: str, params: Any) -> None:
        if self._channel is not None:
            await self._channel.notify(method, params)

    async def _shard_stored(self, info: ShardInfo) -> None:
        await self._tell("shard_stored", calls.entry_of(info))

    async def _need_grant(self, peer: str, encoding: bytes, shards: list[int]) -> Access:
        return await self._call("need_grant", calls.NeedGrant(peer=peer, encoding=encoding, shards=shards), Access)

    async def _leaf_fault(self, peer: str, encoding: bytes, shard: int, reason: str, evidence: Evidence | None) -> None:
        await self._tell("leaf_fault", calls.LeafFault(peer=peer, encoding=encoding, shard=shard, reason=reason, evidence=evidence))

    async def _progress(self, job: str, done: int, total: int) -> None:
        await self._tell("progress", calls.Progress(job=job, done=done, total=total))

    # The store.

    async def put_blob(self, blob: calls.Blob) -> calls.Blob:
        return calls.Blob(id=await self._in_files(self._store.put_blob, blob.data or b""))

    async def get_blob(self, blob: calls.Blob) -> calls.Blob:
        return calls.Blob(data=await self._in_files(self._store.get_blob, _id(blob.id)))

    async def has_blob(self, blob: calls.Blob) -> bool:
        return await self._in_files(self._store.get_blob, _id(blob.id)) is not None

    async def add_model(self, model: calls.ModelBlobs) -> None:
        await self._in_files(self._store.add_model, ModelId(_id(model.model)), [_id(blob) for blob in model.blobs])

    async def share(self, model: calls.ModelBlobs) -> None:
        encodings = [EncodingId(_id(encoding)) for encoding in model.blobs]
        await self._in_files(self._store.share, ModelId(_id(model.model)), encodings)
        await self._tell("shards_gone", calls.ModelRef(model=model.model))

    async def models(self, _: calls.ModelRef) -> list[calls.ModelBlobs]:
        return [calls.ModelBlobs(model=model, blobs=blobs) for model, blobs in (await self._in_files(self._store.models)).items()]

    async def list_shards(self, model: calls.ModelRef) -> list[calls.ShardEntry]:
        infos = await self._in_files(self._store.list_shards, ModelId(model.model) if model.model else None)
        return [calls.entry_of(info) for info in infos]

    async def has_shard(self, shard: calls.ShardRef) -> bool:
        return await self._in_files(self._store.has, shard.key())

    async def shard_lengths(self, refs: calls.ShardRefs) -> list[int | None]:
        return await self._in_files(lambda: [self._length(ref.key()) for ref in refs.shards])

    def _length(self, key: ShardKey) -> int | None:
        reader = self._store.open_shard(key)
        if reader is None:
            return None
        reader.close()
        return reader.length

    async def drop_shard(self, shard: calls.ShardRef) -> None:
        await self._in_files(self._store.drop_shard, shard.key(), shard.reason or "asked by the node")

    async def take_back(self, shard: calls.ShardRef) -> bool:
        """Drops what `owner` put here, or forgets that it was to; manifest and envelope go with the last that needed them.

        What another model shares stays.
        """
        withdrawn = self._expected.withdraw(shard.key(), shard.owner or "")
        awaited = self._expected.models()
        model = await self._in_files(self._take_back, shard, withdrawn, awaited)
        if model is None:
            return False
        await self._tell("shards_gone", calls.ModelRef(model=model))
        return True

    def _take_back(self, shard: calls.ShardRef, withdrawn: ModelId | None, awaited: set[ModelId]) -> ModelId | None:
        key = shard.key()
        info = next((info for info in self._store.list_shards() if info.key == key and info.owner == shard.owner), None)
        if info is not None and not any(key.encoding in blobs for model, blobs in self._store.models().items() if model != info.model):
            self._store.drop_shard(key, f"taken back by {shard.owner}")
        model = info.model if info is not None else withdrawn
        if model is not None:
            self._store.prune([key.encoding] if model in awaited else [key.encoding, model])
        return model

    async def verify_shard(self, shard: calls.ShardRef) -> calls.Verified:
        reason = await self._in_files(verify, self._store, shard.key())
        return calls.Verified(ok=reason is None, reason=reason)

    async def audit_walk(self, asked: calls.AuditWalk) -> audit_reads.Walked:
        keys = [ref.key() for ref in asked.shards]
        walked = await self._in_files(audit_reads.walk, self._store, asked.nonce, keys, asked.steps)
        for model in walked.lost:
            await self._tell("shards_gone", calls.ModelRef(model=model))
        return walked

    async def audit_show(self, asked: calls.AuditShow) -> audit_reads.Shown:
        places = [(ref.key(), leaf) for ref, leaf in zip(asked.shards, asked.leaves, strict=True)]
        return await self._in_files(audit_reads.show, self._store, places)

    async def pin(self, pin: calls.PinModel) -> None:
        await self._in_files(self._store.pin if pin.keep else self._store.unpin, ModelId(_id(pin.model)))

    async def pins(self, _: calls.ModelRef) -> list[bytes]:
        return sorted(await self._in_files(self._store.pins))

    async def renew(self, refs: calls.ShardRefs) -> int:
        """Renews those of these shards that `owner` put; how many they are."""
        return await self._in_files(self._renew, refs)

    def _renew(self, refs: calls.ShardRefs) -> int:
        owners = {info.key: info.owner for info in self._store.list_shards()}
        keys = [ref.key() for ref in refs.shards if ref.key() in owners and owners[ref.key()] == ref.owner]
        self._store.renew(keys, time.time())
        return len(keys)

    async def forget(self, model: calls.ModelRef) -> int:
        freed = await self._in_files(self._store.forget, ModelId(_id(model.model)))
        await self._tell("shards_gone", model)
        return freed

    async def space(self, _: calls.ModelRef) -> calls.SpaceEntry:
        space = await self._in_files(self._store.space)
        return calls.SpaceEntry(quota=space.quota, used=space.used, free=space.free)

    async def stat(self, _: calls.ModelRef) -> calls.Stat:
        used = resource.getrusage(resource.RUSAGE_SELF)
        shards = len(await self._in_files(self._store.list_shards))
        return calls.Stat(
            requests=self._server.requests, shards=shards, cpu_seconds=used.ru_utime + used.ru_stime, peak_bytes=used.ru_maxrss * 1024
        )

    async def expect_put(self, entry: calls.ShardEntry) -> None:
        info = entry.info()
        self._expected.expect(ExpectedPut(info.key, info.model, info.group, info.owner))

    async def give_way(self, asked: calls.GiveWay) -> None:
        self._pace.give_way(min(max(asked.seconds, 0.0), GIVES_WAY_MOST), time.monotonic())

    # Coding, fetching, pushing.

    async def _encode(self, params: Any, fds: list[int]) -> Encoded:
        return await encode_group(converted(params, EncodeGroup), fds, self._staging, self._key, self._coding)

    async def _fetch(self, params: Any, fds: list[int]) -> Fetched:
        job = converted(params, FetchGroup)
        if job.spans is None and len(fds) != 1:
            raise BadInput(f"a fetch takes one descriptor, {len(fds)} came")
        callbacks = Callbacks(self._need_grant, self._leaf_fault, self._progress)
        with self._pace.job(behind=job.behind):
            decoding = await self._decoders.begin(job, fds)
            try:
                return await fetch_group(job, decoding, self._connections, callbacks)
            finally:
                for slot in await decoding.end():
                    self._connections.slots.give_back(slot)

    async def rebuild_shards(self, job: RebuildShards) -> Fetched:
        callbacks = Callbacks(self._need_grant, self._leaf_fault, self._progress)
        with self._pace.job(behind=True):
            return await rebuild_shards(job, self._staging, self._connections, callbacks, self._coding)

    async def push_shard(self, job: PushShard) -> None:
        await push_shard(job, self._staging, self._connections, self._coding, store=self._store)

    async def keep_shard(self, job: KeepShard) -> None:
        info = await self._in_files(self._keep, job)
        await self._shard_stored(info)

    def _keep(self, job: KeepShard) -> ShardInfo:
        envelope, record = self._staging.envelope(job.encoding), self._staging.record(job.encoding)
        staged = self._staging.open(job.encoding, job.shard)
        key = calls.ShardRef(encoding=job.encoding, shard=job.shard).key()
        info = ShardInfo(key, ModelId(_id(job.model)), job.group, staged.length, time.time(), self._peer_id)
        if job.shard >= len(record.roots):
            raise BadInput(f"the encoding commits to {len(record.roots)} shards, there is no shard {job.shard}")
        self._store.put_blob(envelope)
        writer = self._store.put_shard(info, staged.leaves, record.roots[job.shard])
        try:
            with staged.path.open("rb", buffering=0) as file:
                while data := file.read(limits.MIB):
                    writer.write(data)
            writer.commit()
        finally:
            writer.abort()
        self._staging.drop_shard(job.encoding, job.shard)
        return info

    async def list_staged(self, _: calls.ModelRef) -> list[calls.Staged]:
        return await self._in_files(self._staged)

    def _staged(self) -> list[calls.Staged]:
        return [calls.Staged(encoding=encoding, shards=list(self._staging.shards(encoding))) for encoding in self._staging.list()]

    async def drop_staged(self, ref: calls.EncodingRef) -> None:
        await self._in_files(self._staging.drop, ref.encoding)


def _id(value: bytes | None) -> bytes:
    if value is None or len(value) != 32:
        raise BadInput("an id has 32 bytes")
    return value
