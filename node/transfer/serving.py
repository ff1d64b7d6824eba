"""A shard asked for, and given out in signed windows: what is the same whoever writes the answer to the line.

GET /shard/{encoding}/{j}?first=a&count=c[&leaves=1]   leaf list if asked, then windows of up to 16 leaves, each signed
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardKey, ShardStore
from node.transfer.admission import Grants, OpenGrant
from node.transfer.finishing import to_the_end
from node.transfer.open_shards import OpenShard, OpenShards
from node.transfer.upkeep import Reads
from node.transfer.windows import WINDOW, WindowSigner, body_bytes, span_bytes
from protocol import limits
from protocol.encoding import leaf_count
from protocol.errors import BadInput, Busy, NotFound
from protocol.grants import grant_from_header
from protocol.ids import encoding_from, encoding_text
from protocol.windows import SIGNATURE

MAX_REQUESTS = 64
ROOMS_KEPT = 8
READ_AHEAD = 4 * limits.MIB
Bytes = bytes | bytearray | memoryview


class Out(Protocol):
    """Where one answer goes. `send` returns when the line has taken the bytes, whose buffer is then used again; a client that takes
    none for long ends in an error."""

    async def begin(self, length: int) -> None:
        """`length` bytes follow."""

    async def send(self, data: Bytes) -> None: ...


class Closable(Protocol):
    """A connection."""

    def close(self) -> None: ...


class Gate:
    """Counts requests; at most `MAX_REQUESTS` at once."""

    def __init__(self) -> None:
        self.running = 0
        self.requests = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        if self.running >= MAX_REQUESTS:
            raise Busy(f"{MAX_REQUESTS} transfers are running at this node", hint="try again in a moment")
        self.running += 1
        self.requests += 1
        try:
            yield
        finally:
            self.running -= 1


@dataclass(frozen=True)
class ShardRequest:
    """`count` leaves from `first` on (-1: to the end), the leaf list before them where `listed`."""

    key: ShardKey
    grant: bytes
    first: int
    count: int
    listed: bool

    @classmethod
    def parse(cls, encoding: str, shard: str, query: str, grant: str) -> ShardRequest:
        """From a request's path, query and `MF-Grant`; `BadInput` names what is wrong with it."""
        try:
            asked = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=8))
        except ValueError as error:
            raise BadInput("the query has too many fields") from error
        first, count = _number(asked, "first", 0), _number(asked, "count", -1)
        return cls(shard_key(encoding, shard), grant_from_header(grant), first, count, asked.get("leaves") == "1")


def shard_key(encoding: str, shard: str) -> ShardKey:
    if not (shard.isascii() and shard.isdigit() and len(shard) <= 3 and int(shard) < limits.MAX_SHARDS):
        raise BadInput(f"not a shard number below {limits.MAX_SHARDS}: {shard[:16]!r}")
    return ShardKey(encoding_from(encoding), int(shard))


def _number(asked: dict[str, str], name: str, default: int) -> int:
    text = asked.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadInput(f"{name} is {text[:16]!r}, not a number of leaves")
    return int(text)


class ShardServing:
    def __init__(self, store: ShardStore, signer: Ed25519PrivateKey, executor: Executor, grants: Grants) -> None:
        self._windows, self._executor, self._grants = WindowSigner(signer), executor, grants
        # A fresh MiB costs more in page faults than reading the shard into it.
        self._rooms: list[bytearray] = []
        self._open = OpenShards(store, executor)
        self.reads: Reads = self._open

    def close(self) -> None:
        self._open.close()

    async def serve(self, request: ShardRequest, out: Out) -> None:
        """`Forbidden`, `BadInput` or `NotFound` before `out` has begun; any error after it leaves the answer short."""
        grant = self._grants.admit(request.grant, "get", request.key)
        shard = await self._open.take(request.key)
        if shard is None:
            raise NotFound(f"shard {request.key.shard} of {encoding_text(request.key.encoding)} isn't held here")
        try:
            await self._send(request, shard, grant, out)
        finally:
            self._open.give_back(shard)

    async def _send(self, request: ShardRequest, shard: OpenShard, grant: OpenGrant, out: Out) -> None:
        length, first = shard.reader.length, request.first
        count = leaf_count(length) - first if request.count < 0 else request.count
        left = span_bytes(length, first, count)
        self._grants.charge(grant, left)
        room = self._rooms.pop() if self._rooms else bytearray(WINDOW + SIGNATURE)
        try:
            await out.begin(request.listed * len(shard.leaves) + body_bytes(length, first, count))
            if request.listed:
                await out.send(shard.leaves)
            for at in range(first, first + count, limits.WINDOW_LEAVES):
                window = await self._window(shard, at, min(limits.WINDOW_LEAVES, first + count - at), memoryview(room))
                await out.send(window)
                left -= len(window) - SIGNATURE
        finally:
            self._grants.refund(grant, left)
            if len(self._rooms) < ROOMS_KEPT:
                self._rooms.append(room)

    async def _window(self, shard: OpenShard, first: int, count: int, room: memoryview) -> memoryview:
        """At once where the disk needn't be waited for: a hop to a thread and back costs as much as the window's hashes."""
        window = self._windows.cached(shard.reader, shard.key, first, count, room)
        if window is not None:
            return window
        shard.reader.will_read(first * limits.LEAF, READ_AHEAD)
        loop = asyncio.get_running_loop()
        # The reader may be closed after this: no thread may be in it any more.
        return await to_the_end(loop.run_in_executor(self._executor, self._windows.read, shard.reader, shard.key, first, count, room))
