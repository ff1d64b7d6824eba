"""Other nodes' data plane, from the client's side: connections pinned to their certificates, and one shard read from one holder.

A `ShardReader` follows one response from a window to the shard's end, checks the leaf list against the encoding's root and every
leaf on arrival, and hands whole verified windows to the board. It never judges whether it is too slow: it keeps the stamps by
which `fetch.py` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import aiohttp
from blake3 import blake3

from node.transfer.fetch_board import Board, Shape
from node.transfer.jobs import GRANT_KEPT, Granted, Source
from protocol import limits
from protocol.encoding import shard_root
from protocol.errors import BadInput, MfError, Unavailable, error_from_wire
from protocol.framing import Record
from protocol.grants import header_from
from protocol.ids import EncodingId, encoding_text
from protocol.signing import verify_bytes
from protocol.windows import DOMAIN as WINDOW_DOMAIN
from protocol.windows import SIGNATURE, window_body

CONNECT_WITHIN = 3.0
SILENT_AT_MOST = 10.0
GRANT_WITHIN = 8.0
GRANT_FRESH = 0.75 * limits.GRANT_OPEN_WITHIN
MAX_URLS = 4
MAX_PINS = 4096
MAX_ERROR = 64 * limits.KIB
_READ_BUFFER = 512 * limits.KIB
log = logging.getLogger(__name__)


class Access(Record):
    """How to reach a node's data plane: base URLs (`https://host:port`) to try in order, SHA-256 of its certificate, its grant."""

    urls: list[str]
    tls: bytes
    grant: bytes


class Evidence(Record):
    """A window with a wrong leaf as it came: `signed` when the sender's signature over these digests holds."""

    first: int
    count: int
    digests: bytes
    signature: bytes
    signed: bool


@dataclass(frozen=True)
class Callbacks:
    """What a fetch asks of the node: `need_grant(peer, encoding, shards)`, `leaf_fault(peer, encoding, shard, reason, evidence)`,
    `progress(job, done, total)` in plain bytes."""

    need_grant: Callable[[str, bytes, list[int]], Awaitable[Access]]
    leaf_fault: Callable[[str, bytes, int, str, Evidence | None], Awaitable[None]]
    progress: Callable[[str, int, int], Awaitable[None]]


class Connections:
    """The HTTPS client of the transfer process: one session, connections pooled per peer, buffers for windows. `close` it with the loop."""

    def __init__(self) -> None:
        self.buffers: list[bytearray] = []
        self._session: aiohttp.ClientSession | None = None
        # aiohttp pools connections by the identity of this object: a fresh one per request would never meet its connection again.
        self._pins: dict[bytes, aiohttp.Fingerprint] = {}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self, method: str, access: Access, peer: str, path: str, timeout: aiohttp.ClientTimeout, **options: Any
    ) -> aiohttp.ClientResponse:
        """The response (itself an async context manager) from the first URL that connects; `SourceFailed` names the peer and why."""
        headers = {"MF-Grant": header_from(access.grant), **options.pop("headers", {})}
        reason = "it gave no address"
        for base in access.urls[:MAX_URLS]:
            try:
                return await self._open().request(
                    method,
                    base.rstrip("/") + path,
                    ssl=self._pin(access, peer),
                    headers=headers,
                    timeout=timeout,
                    allow_redirects=False,
                    **options,
                )
            except aiohttp.ServerFingerprintMismatch as error:
                raise SourceFailed(peer, f"{base} shows another certificate than the node's record names") from error
            except (aiohttp.ClientConnectionError, TimeoutError, aiohttp.InvalidURL) as error:
                reason = f"{base}: {error or type(error).__name__}"
        raise SourceFailed(peer, f"can't be reached ({reason})")

    def _pin(self, access: Access, peer: str) -> aiohttp.Fingerprint:
        if len(access.tls) != 32:
            raise SourceFailed(peer, "gave a certificate digest that isn't SHA-256")
        if len(self._pins) >= MAX_PINS:
            self._pins.clear()
        return self._pins.setdefault(access.tls, aiohttp.Fingerprint(access.tls))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
            )
        return self._session


class SourceFailed(Exception):
    """One holder couldn't serve; others may. Stays within this process: `unavailable` is what goes to others."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"node {peer} {reason}")
        self.peer = peer
        self.reason = reason

    def unavailable(self) -> Unavailable:
        return Unavailable(str(self), hint="try again, or use another node", details={"peer": self.peer})


class WrongBytes(Exception):
    """A holder sent bytes that aren't the shard's; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def shard_path(encoding: bytes, shard: int) -> str:
    return f"/shard/{encoding_text(EncodingId(encoding))}/{shard}"


async def refusal(response: aiohttp.ClientResponse) -> MfError:
    """The error in a response that isn't the one wanted, in the words of the node that wrote it."""
    try:
        wire = json.loads(await response.content.read(MAX_ERROR))
    except (ValueError, aiohttp.ClientError, TimeoutError):
        wire = None
    if not isinstance(wire, dict):
        return Unavailable(f"HTTP status {response.status}")
    return error_from_wire(wire)


class Grants:
    """One grant per peer for all its shards of this encoding, asked for once and again when it has aged."""

    def __init__(self, encoding: bytes, sources: list[Source], granted: list[Granted], callbacks: Callbacks) -> None:
        self._encoding = encoding
        self._granted = {given.peer: Access(urls=given.urls, tls=given.tls, grant=given.grant) for given in granted}
        self._shards: dict[str, list[int]] = {}
        for source in sources:
            self._shards.setdefault(source.peer, []).append(source.shard)
        self._callbacks = callbacks
        self._asked: dict[str, tuple[float, asyncio.Task[Access]]] = {}

    def prefetch(self, peer: str) -> asyncio.Task[Access]:
        now = asyncio.get_running_loop().time()
        at, task = self._asked.get(peer, (0.0, None))
        if task is None and peer in self._granted:
            access = self._granted[peer]
            task = asyncio.create_task(_given(access), name=f"grant of {peer}")
            self._asked[peer] = (now - GRANT_KEPT, task)
        elif task is None or now - at > GRANT_FRESH or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._ask(peer), name=f"grant of {peer}")
            self._asked[peer] = (now, task)
        return task

    async def of(self, peer: str) -> Access:
        try:
            return await asyncio.shield(self.prefetch(peer))
        except MfError as error:
            raise SourceFailed(peer, f"gave no grant: {error.message}") from error
        except TimeoutError as error:
            raise SourceFailed(peer, f"gave no grant within {GRANT_WITHIN:g} s") from error

    def tasks(self) -> list[asyncio.Task[Access]]:
        return [task for _, task in self._asked.values()]

    async def _ask(self, peer: str) -> Access:
        async with asyncio.timeout(GRANT_WITHIN):
            return await self._callbacks.need_grant(peer, self._encoding, sorted(set(self._shards[peer])))


async def _given(access: Access) -> Access:
    return access


class ShardReader:
    """Reads shard `source.shard` from `source.peer`, window by window.

    `position` is the window being read; `since` when its reading began; `heard` when bytes last came (None: none yet);
    `resting` while it waits for room or for its bytes to be checked. `received` bytes in `reading` seconds give its speed.
    """

    def __init__(self, source: Source, shape: Shape, board: Board, first: int, executor: Executor) -> None:
        self.source = source
        self.position = first
        self.since = self.started = asyncio.get_running_loop().time()
        self.heard: float | None = None
        self.resting = False
        self.hedged = False
        self.received = 0
        self.reading = 0.0
        self.evidence: Evidence | None = None
        self._over: memoryview | None = None
        self._shape = shape
        self._board = board
        self._executor = executor

    @property
    def finished(self) -> bool:
        return self.position >= self._shape.windows

    async def run(self, connections: Connections, grants: Grants) -> None:
        """To the shard's end. `SourceFailed`: try another; `WrongBytes`: set the shard aside (see `evidence`)."""
        peer = self.source.peer
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN, sock_read=SILENT_AT_MOST)
        try:
            access = await grants.of(peer)
            path = f"{shard_path(self._shape.encoding, self.source.shard)}?{self._query()}"
            async with await connections.request("GET", access, peer, path, timeout) as response:
                if response.status != 200:
                    raise SourceFailed(peer, f"refused: {(await refusal(response)).message}")
                await self._follow(response.content)
        except TimeoutError as error:
            raise SourceFailed(peer, f"sent nothing for {SILENT_AT_MOST:g} s") from error
        except aiohttp.ClientError as error:
            raise SourceFailed(peer, f"broke off: {error or type(error).__name__}") from error

    def _query(self) -> str:
        first = self.position * limits.WINDOW_LEAVES
        leaves = "" if self.source.shard in self._board.leaves else "&leaves=1"
        return f"first={first}&count={self._shape.leaves - first}{leaves}"

    async def _follow(self, content: aiohttp.StreamReader) -> None:
        shard = self.source.shard
        if shard not in self._board.leaves:
            listed = bytearray(32 * self._shape.leaves)
            await self._fill(content, memoryview(listed))
            if shard_root(self._shape.length, bytes(listed)) != self._shape.roots[shard]:
                raise WrongBytes("its leaf list doesn't give the encoding's root")
            self._board.leaves[shard] = bytes(listed)
        for window in range(self.position, self._shape.windows):
            self.position = window
            self.resting = True
            await self._board.room(window)
            self.resting = False
            self.since = asyncio.get_running_loop().time()
            await self._window(content, window)
        self.position = self._shape.windows

    async def _window(self, content: aiohttp.StreamReader, window: int) -> None:
        size = self._shape.window_length(window)
        buffer = self._board.buffer()
        view = memoryview(buffer)[: size + SIGNATURE]
        await self._fill(content, view)
        if not self._board.wants(window, self.source.shard):
            self._board.give_back(buffer)
            return
        first = window * limits.WINDOW_LEAVES
        expected = self._board.leaves[self.source.shard][32 * first : 32 * (first + limits.WINDOW_LEAVES)]
        seconds = asyncio.get_running_loop().time() - self.since
        self.resting = True
        digests = await asyncio.get_running_loop().run_in_executor(self._executor, _digests, view[:size])
        if digests != expected:
            self._keep_evidence(first, digests, bytes(view[size:]))
            wrong = next(at for at in range(0, len(expected), 32) if digests[at : at + 32] != expected[at : at + 32]) // 32
            raise WrongBytes(f"leaf {first + wrong} has wrong bytes")
        self._board.deliver(window, self.source.shard, buffer, seconds)

    async def _fill(self, content: aiohttp.StreamReader, view: memoryview) -> None:
        loop = asyncio.get_running_loop()
        before, done = loop.time(), 0
        while done < len(view):
            # readchunk gives what came as it came; read(n) would join it first, one copy of every byte more.
            data = self._over or memoryview((await content.readchunk())[0])
            if not data:
                if content.at_eof():
                    raise SourceFailed(self.source.peer, "closed the connection early")
                continue
            take = min(len(data), len(view) - done)
            view[done : done + take] = data[:take]
            self._over = data[take:] if take < len(data) else None
            done += take
            self.received += take
            self.heard = loop.time()
        self.reading += loop.time() - before

    def _keep_evidence(self, first: int, digests: bytes, signature: bytes) -> None:
        count = len(digests) // 32
        body = window_body(self._shape.encoding, self.source.shard, first, count, digests)
        try:
            signed = verify_bytes(self.source.peer, WINDOW_DOMAIN, body, signature)
        except BadInput:  # a PeerID that isn't Ed25519 signs nothing
            signed = False
        self.evidence = Evidence(first=first, count=count, digests=digests, signature=signature, signed=signed)


def _digests(view: memoryview) -> bytes:
    return b"".join(blake3(view[at : at + limits.LEAF]).digest() for at in range(0, len(view), limits.LEAF))
