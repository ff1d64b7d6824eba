"""Other nodes' data plane, from the client's side: what readers of shards share (connections, room for windows, leftovers), the leave to
read, and the ways in which a holder fails."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from node.transfer.jobs import GRANT_KEPT, Granted, Source
from node.transfer.leftovers import Leftovers
from node.transfer.lines import Lines
from node.transfer.slots import Slots
from node.transfer.turns import Turns
from protocol import limits
from protocol.errors import MfError, Unavailable, error_from_wire
from protocol.framing import Record
from protocol.ids import EncodingId, encoding_text

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
        self._leftovers: Leftovers | None = None

    @property
    def leftovers(self) -> Leftovers:
        """Of the process before this one, if it was killed."""
        if self._leftovers is None:
            self._leftovers = Leftovers(self.slots.give_back)
            self.slots.memory()
            for slot in list(self.slots.left):
                if not self._leftovers.add(slot):
                    self.slots.give_back(slot)
        return self._leftovers

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
