"""Other nodes' data plane, from the client's side: connections pinned to their certificates, and one shard read from one holder.

A `ShardReader` follows one response from a window to the shard's end, checks the leaf list against the encoding's root and every
leaf on arrival, and hands whole verified windows to the board. It never judges whether it is too slow: it keeps the stamps by
which `fetch.py` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from node.transfer.fetch_board import Board, Shape
from node.transfer.jobs import GRANT_KEPT, Granted, Source
from node.transfer.lines import Broken, Line, Lines, OtherCertificate
from node.transfer.slots import Slots
from node.transfer.turns import Turns
from protocol import limits
from protocol.encoding import leaf_digests, shard_root
from protocol.errors import BadInput, MfError, Unavailable, error_from_wire
from protocol.framing import Record
from protocol.grants import header_from
from protocol.ids import EncodingId, encoding_text
from protocol.signing import verify_bytes
from protocol.windows import DOMAIN as WINDOW_DOMAIN
from protocol.windows import SIGNATURE, window_body

GRANT_WITHIN = 8.0
GRANT_FRESH = 0.75 * limits.GRANT_OPEN_WITHIN
LAGS_FOR = 10.0
MAX_URLS = 4
MAX_LAGGING = 4096
MAX_ERROR = 64 * limits.KIB
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
    """The HTTPS client of the transfer process: lines, buffers, and what groups tell each other. `close` it with the loop."""

    def __init__(self) -> None:
        self.slots = Slots()
        self.turns = Turns()
        self.lagging = Lagging()
        self.lines = Lines()

    async def close(self) -> None:
        self.lines.close()
        self.slots.close()


class Lagging:
    """Holders that a spare has overtaken lately: groups begun next ask them last, before their speeds are known to the node."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, peer: str) -> None:
        if len(self._until) >= MAX_LAGGING:
            self._until.clear()
        self._until[peer] = time.monotonic() + LAGS_FOR

    def has(self, peer: str) -> bool:
        return self._until.get(peer, 0.0) > time.monotonic()


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


def refusal(status: int, data: bytes) -> MfError:
    """The error in a response that isn't the one wanted, in the words of the node that wrote it."""
    try:
        wire = json.loads(data)
    except ValueError:
        wire = None
    return error_from_wire(wire) if isinstance(wire, dict) else Unavailable(f"HTTP status {status}")


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

    def __init__(self, source: Source, shape: Shape, board: Board, first: int) -> None:
        self.source = source
        self.position = first
        self.since = self.started = time.monotonic()
        self.heard: float | None = None
        self.resting = False
        self.hedged = False
        self.received = 0
        self.reading = 0.0
        self.evidence: Evidence | None = None
        self._line: Line | None = None
        self._shape = shape
        self._board = board

    @property
    def finished(self) -> bool:
        return self.position >= self._shape.windows

    async def run(self, connections: Connections, grants: Grants) -> None:
        """To the shard's end. `SourceFailed`: try another; `WrongBytes`: set the shard aside (see `evidence`)."""
        access = await grants.of(self.source.peer)
        if len(access.tls) != 32:
            raise SourceFailed(self.source.peer, "gave a certificate digest that isn't SHA-256")
        try:
            await self._begin(connections.lines, access)
            await self._follow()
            if self._line is not None:
                connections.lines.keep(self._line, access.tls)
                self._line = None
        except Broken as error:
            raise SourceFailed(self.source.peer, str(error)) from error
        finally:
            if self._line is not None:
                self._line.close()

    def _path(self) -> str:
        first = self._shape.first_leaf(self.position)
        leaves = "" if self.source.shard in self._board.leaves else "&leaves=1"
        return f"{shard_path(self._shape.encoding, self.source.shard)}?first={first}&count={self._shape.leaves - first}{leaves}"

    async def _begin(self, lines: Lines, access: Access) -> None:
        """Asks for the shard on a line that is open, else on a new one, and takes the leaf list that comes first."""
        path, grant = self._path(), header_from(access.grant)
        line = await self._ask(lines, access, path, grant)
        if line.status != 200:
            raise SourceFailed(self.source.peer, f"refused: {refusal(line.status, await line.body(MAX_ERROR)).message}")
        if path.endswith("&leaves=1"):
            listed = bytearray(32 * self._shape.leaves)
            await line.fill(memoryview(listed), self._note)
            if shard_root(self._shape.length, bytes(listed)) != self._shape.roots[self.source.shard]:
                raise WrongBytes("its leaf list doesn't give the encoding's root")
            self._board.leaves[self.source.shard] = bytes(listed)

    async def _ask(self, lines: Lines, access: Access, path: str, grant: str) -> Line:
        reason = "can't be reached (it gave no address)"
        for base in access.urls[:MAX_URLS]:
            kept = lines.idle(base, access.tls)
            # A line kept open may have been closed by the other end meanwhile: then a new one.
            for line in (Line(base, access.tls),) if kept is None else (kept, Line(base, access.tls)):
                self._line = line
                try:
                    if not line.used:
                        await line.open()
                    await line.ask(path, grant)
                    return line
                except Broken as error:
                    reason = str(error)
                    line.close()
                    if isinstance(error, OtherCertificate):
                        raise
        raise Broken(reason)

    def _note(self, count: int) -> None:
        self.received += count
        self.heard = time.monotonic()

    async def _follow(self) -> None:
        for window in range(self.position, self._shape.windows):
            self.position = window
            self.resting = True
            await self._board.room(window)
            self.resting = False
            self.since = time.monotonic()
            await self._window(window)
        self.position = self._shape.windows

    async def _window(self, window: int) -> None:
        size = self._shape.window_length(window)
        if self._line is None:
            raise Broken("was given up")
        slot = self._board.slot()
        try:
            await self._line.fill(slot.view[: size + SIGNATURE], self._note)
            seconds = time.monotonic() - self.since
            self.reading += seconds
            if self._board.wants(window, self.source.shard):
                self._check(window, slot.view[:size], bytes(slot.view[size : size + SIGNATURE]))
        except BaseException:
            self._board.give_back(slot)
            raise
        self._board.deliver(window, self.source.shard, slot, seconds)

    def _check(self, window: int, view: memoryview, signature: bytes) -> None:
        first = self._shape.first_leaf(window)
        expected = self._board.leaves[self.source.shard][32 * first : 32 * (first + limits.WINDOW_LEAVES)]
        # A third of a millisecond: a hop to a thread and back would cost as much.
        digests = b"".join(leaf_digests(view))
        if digests != expected:
            self._keep_evidence(first, digests, signature)
            wrong = next(at for at in range(0, len(expected), 32) if digests[at : at + 32] != expected[at : at + 32]) // 32
            raise WrongBytes(f"leaf {first + wrong} has wrong bytes")

    def _keep_evidence(self, first: int, digests: bytes, signature: bytes) -> None:
        count = len(digests) // 32
        body = window_body(self._shape.encoding, self.source.shard, first, count, digests)
        try:
            signed = verify_bytes(self.source.peer, WINDOW_DOMAIN, body, signature)
        except BadInput:  # a PeerID that isn't Ed25519 signs nothing
            signed = False
        self.evidence = Evidence(first=first, count=count, digests=digests, signature=signature, signed=signed)
