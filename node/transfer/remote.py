"""The transfer process as the node sees it: started, called, watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from node.channel import Channel, ChannelClosed, Method
from node.logs import JsonFormatter
from node.store.interface import ShardInfo, ShardKey, Space
from node.transfer import calls
from node.transfer.audit_reads import Shown, Walked
from node.transfer.calls import Stat, Verified
from node.transfer.jobs import Encoded, EncodeGroup, Fetched, FetchGroup, KeepShard, PushShard, RebuildShards, TransferConfig
from node.transfer.sources import Access, Evidence
from protocol.errors import MfError, Unavailable
from protocol.ids import EncodingId, ModelId

T = TypeVar("T")
START_WITHIN = 10.0
STOP_WITHIN = 2.0
RESTART_WITHIN = 5.0
TOLD_WITHIN = 0.1
CALL_WITHIN = 60.0
"""A call that only touches the own disk. Coding, fetching and pushing bound themselves."""

log = logging.getLogger(__name__)


class TransferCallbacks(Protocol):
    """What the transfer process asks and tells. An error raised in `need_grant` goes to the fetch that asked."""

    async def need_grant(self, peer: str, encoding: EncodingId, shards: list[int]) -> Access: ...

    async def leaf_fault(self, peer: str, encoding: EncodingId, shard: int, reason: str, evidence: Evidence | None) -> None: ...

    async def progress(self, job: str, done: int, total: int) -> None: ...

    async def shard_stored(self, info: ShardInfo) -> None:
        """After a durable put by a peer, or by `keep_shard`."""

    async def shards_gone(self, model: ModelId) -> None:
        """What lies here of the model changed otherwise: forgotten, taken back, collected, shared with another model."""

    def ended(self, error: MfError) -> None:
        """The process died without being told to; every call pending has failed. `restart` it."""


def child_environment() -> dict[str, str]:
    """What the process needs to run Python, and no secret of the node's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONUNBUFFERED": "1"}


class Transfer:
    """The process, its lives and its calls: `start`, after a death `restart`, at the end `stop`.

    Methods raise the process's own errors, or `ChannelClosed` when it is gone.
    """

    def __init__(self, config: TransferConfig, callbacks: TransferCallbacks) -> None:
        self._config, self._callbacks = config, callbacks
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False
        self.closed = asyncio.Event()
        self._standing = asyncio.Event()
        """Cleared from a death by itself until a new process is configured."""
        self._standing.set()
        self.port = 0
        """Where the server listens, once started."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Spawns and configures; `DeadlineExceeded` after 10 s, or the process's own error (format, port, place)."""
        self._stopping = False
        self.closed.clear()
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "node.transfer.process", str(theirs.fileno()), _log_form(),
                stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else None,
                pass_fds=[theirs.fileno()], env=child_environment(),
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, self._methods(), "transfer process")
        self._channel.start()
        self._watcher = asyncio.create_task(self._watch(), name="transfer process watch")
        try:
            self.port = (await self._channel.call("configure", self._config, calls.Started, timeout=START_WITHIN)).port
        except BaseException:
            await self.stop()
            raise
        self._standing.set()

    @property
    def life(self) -> object:
        """One from its start to its end, to be compared."""
        return self._channel

    def alive(self, life: object) -> bool:
        """Whether it is still in that life: what was staged in another is gone."""
        return self._channel is life and self._channel is not None and not self._channel.closed.is_set()

    async def restart(self) -> None:
        """After `ended`: a new process on the same port, since peers know that one. Errors as of `start`; may be tried again."""
        await self.stop()
        host = self._config.listen.rpartition(":")[0]
        self._config = msgspec.structs.replace(self._config, listen=f"{host}:{self.port}")
        await self.start()

    async def stop(self) -> None:
        """Ends it within 2 s, by force if need be."""
        self._stopping = True
        if self._channel is not None:
            await self._channel.close()
        if self._process is not None and self._watcher is not None:
            try:
                async with asyncio.timeout(STOP_WITHIN):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
            await self._watcher

    async def _watch(self) -> None:
        if self._process is None or self._channel is None:
            return
        code = await self._process.wait()
        if not self._stopping:
            self._standing.clear()
        await self._channel.close()
        self.closed.set()
        if not self._stopping:
            error = Unavailable(f"the transfer process ended by itself (exit status {code})", hint="it is started again; its log is above")
            log.error("%s", error.message, extra={"event": "transfer_ended", "fields": {"status": code}})
            self._callbacks.ended(error)

    async def _call(self, method: str, params: Any, kind: Any, fds: Sequence[int] = (), timeout: float | None = CALL_WITHIN) -> Any:
        if self._channel is None:
            raise Unavailable("the transfer process isn't started")
        if self._channel.closed.is_set() and not self._stopping:
            self._standing.clear()  # its end is heard on the channel before its death is known
        await self._restarted()
        return await self._channel.call(method, params, kind, fds=fds, timeout=timeout)

    async def _restarted(self) -> None:
        """After a death by itself a new process is there within a second: a call waits for it rather than fail."""
        if self._standing.is_set():
            return
        try:
            async with asyncio.timeout(RESTART_WITHIN):
                await self._standing.wait()
        except TimeoutError:
            raise Unavailable("the transfer process ended and isn't back yet", hint="ask again in a moment; its log says why") from None

    # What the process asks of the node.

    def _methods(self) -> dict[str, Method]:
        return {
            "need_grant": self._need_grant,
            "leaf_fault": self._leaf_fault,
            "progress": self._progress,
            "shard_stored": self._shard_stored,
            "shards_gone": self._shards_gone,
        }

    async def _need_grant(self, params: Any, fds: list[int]) -> Access:
        ask = _plain(params, calls.NeedGrant)
        return await self._callbacks.need_grant(ask.peer, EncodingId(ask.encoding), ask.shards)

    async def _leaf_fault(self, params: Any, fds: list[int]) -> None:
        fault = _plain(params, calls.LeafFault)
        await self._callbacks.leaf_fault(fault.peer, EncodingId(fault.encoding), fault.shard, fault.reason, fault.evidence)

    async def _progress(self, params: Any, fds: list[int]) -> None:
        told = _plain(params, calls.Progress)
        await self._callbacks.progress(told.job, told.done, told.total)

    async def _shard_stored(self, params: Any, fds: list[int]) -> None:
        await self._callbacks.shard_stored(_plain(params, calls.ShardEntry).info())

    async def _shards_gone(self, params: Any, fds: list[int]) -> None:
        await self._callbacks.shards_gone(ModelId(_plain(params, calls.ModelRef).model or b""))

    # The store.

    async def put_blob(self, data: bytes) -> bytes:
        """Durable; its id."""
        return bytes((await self._call("put_blob", calls.Blob(data=data), calls.Blob)).id)

    async def get_blob(self, blob: bytes) -> bytes | None:
        found: calls.Blob = await self._call("get_blob", calls.Blob(id=blob), calls.Blob)
        return found.data

    async def has_blob(self, blob: bytes) -> bool:
        return bool(await self._call("has_blob", calls.Blob(id=blob), bool))

    async def add_model(self, model: ModelId, blobs: Sequence[bytes]) -> None:
        await self._call("add_model", calls.ModelBlobs(model=model, blobs=list(blobs)), None)

    async def share(self, model: ModelId, encodings: Sequence[EncodingId]) -> None:
        """Their shards here belong to this model too."""
        await self._call("share", calls.ModelBlobs(model=model, blobs=list(encodings)), None)

    async def models(self) -> dict[ModelId, list[bytes]]:
        found: list[calls.ModelBlobs] = await self._call("models", None, list[calls.ModelBlobs])
        return {ModelId(entry.model): entry.blobs for entry in found}

    async def list_shards(self, model: ModelId | None = None) -> list[ShardInfo]:
        found: list[calls.ShardEntry] = await self._call("list_shards", calls.ModelRef(model=model), list[calls.ShardEntry])
        return [entry.info() for entry in found]

    async def has_shard(self, key: ShardKey) -> bool:
        return bool(await self._call("has_shard", _ref(key), bool))

    async def shard_lengths(self, keys: Sequence[ShardKey]) -> list[int | None]:
        """Bytes of each shard, None where it isn't held."""
        refs = calls.ShardRefs(shards=[_ref(key) for key in keys])
        found: list[int | None] = await self._call("shard_lengths", refs, list[int | None])
        return found

    async def drop_shard(self, key: ShardKey, reason: str) -> None:
        await self._call("drop_shard", _ref(key, reason), None)

    async def take_back(self, key: ShardKey, owner: str) -> bool:
        """Drops a shard that `owner` put, or was given leave to put; False when it didn't."""
        return bool(await self._call("take_back", calls.ShardRef(encoding=key.encoding, shard=key.shard, owner=owner), bool))

    async def pin(self, model: ModelId, keep: bool) -> None:
        """Nothing of a pinned model is collected; durable. `keep` False takes the pin away."""
        await self._call("pin", calls.PinModel(model=model, keep=keep), None)

    async def pins(self) -> set[ModelId]:
        return {ModelId(model) for model in await self._call("pins", None, list[bytes])}

    async def renew(self, keys: Sequence[ShardKey], owner: str) -> int:
        """The leases of those that `owner` put run from now again; how many they are."""
        refs = [calls.ShardRef(encoding=key.encoding, shard=key.shard, owner=owner) for key in keys]
        return int(await self._call("renew", calls.ShardRefs(shards=refs), int))

    async def audit_walk(self, nonce: bytes, keys: Sequence[ShardKey], steps: int) -> Walked:
        """The tags of an audit's walk over those of the shards that are held and good; a bad one is dropped."""
        walk = calls.AuditWalk(nonce=nonce, shards=[_ref(key) for key in keys], steps=steps)
        walked: Walked = await self._call("audit_walk", walk, Walked)
        return walked

    async def audit_show(self, places: Sequence[tuple[ShardKey, int]]) -> Shown:
        """Leaf lists and leaves at (shard, leaf number); `NotFound` when one isn't held any more."""
        ask = calls.AuditShow(shards=[_ref(key) for key, _leaf in places], leaves=[leaf for _key, leaf in places])
        shown: Shown = await self._call("audit_show", ask, Shown)
        return shown

    async def verify_shard(self, key: ShardKey) -> Verified:
        """Reads it and checks every leaf now; a bad one is dropped."""
        found: Verified = await self._call("verify_shard", _ref(key), Verified, timeout=600)
        return found

    async def forget(self, model: ModelId) -> int:
        """Bytes freed."""
        return int(await self._call("forget", calls.ModelRef(model=model), int))

    async def space(self) -> Space:
        found: calls.SpaceEntry = await self._call("space", None, calls.SpaceEntry)
        return found.space()

    async def stat(self) -> Stat:
        found: Stat = await self._call("stat", None, Stat)
        return found

    async def expect_put(self, key: ShardKey, model: ModelId, group: int, owner: str) -> None:
        """Before a put grant is given out; the encoding's envelope must be in the store as a blob. Holds for 10 minutes."""
        await self._call(
            "expect_put", calls.ShardEntry(encoding=key.encoding, shard=key.shard, model=model, group=group, owner=owner), None
        )

    async def give_way(self, seconds: float) -> None:
        """This node's worker computes for so long: what is fetched behind replies slows down. Nothing while the process isn't there."""
        if self._channel is not None and not self._channel.closed.is_set():
            with contextlib.suppress(ChannelClosed, TimeoutError):  # a process that takes nothing is no reason to wait
                async with asyncio.timeout(TOLD_WITHIN):
                    await self._channel.notify("give_way", calls.GiveWay(seconds=seconds))

    # Coding, fetching, pushing.

    async def encode_group(self, job: EncodeGroup, fds: Sequence[int]) -> Encoded:
        """`fds` stay the caller's. Cancelling it stops the work and leaves nothing staged."""
        done: Encoded = await self._call("encode_group", job, Encoded, fds, timeout=None)
        return done

    async def fetch_group(self, job: FetchGroup, *fds: int) -> Fetched:
        """Writes the group at `job.offset` of the one descriptor, or into `job.spans` of several; they stay the caller's."""
        done: Fetched = await self._call("fetch_group", job, Fetched, fds, timeout=None)
        return done

    async def rebuild_shards(self, job: RebuildShards) -> Fetched:
        """Missing shards made anew from k others and staged; cancelling it stops the work and leaves nothing staged."""
        done: Fetched = await self._call("rebuild_shards", job, Fetched, timeout=None)
        return done

    async def push_shard(self, job: PushShard) -> None:
        """Returns when the peer has it durably; what lies here stays."""
        await self._call("push_shard", job, None, timeout=None)

    async def keep_shard(self, job: KeepShard) -> None:
        """Moves a staged shard into the own store, durably; `shard_stored` is called too, its owner this node."""
        await self._call("keep_shard", job, None, timeout=600)

    async def list_staged(self) -> dict[EncodingId, list[int]]:
        found: list[calls.Staged] = await self._call("list_staged", None, list[calls.Staged])
        return {EncodingId(entry.encoding): entry.shards for entry in found}

    async def drop_staged(self, encoding: EncodingId) -> None:
        await self._call("drop_staged", calls.EncodingRef(encoding=encoding), None)


def _plain(params: Any, kind: type[T]) -> T:
    return msgspec.convert(params, kind, builtin_types=(bytes,))


def _ref(key: ShardKey, reason: str | None = None) -> calls.ShardRef:
    return calls.ShardRef(encoding=key.encoding, shard=key.shard, reason=reason)


def _log_form() -> str:
    """The process logs to the same standard error as its node, so in the same form."""
    return "json" if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers) else "text"


def _has_fileno(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True
