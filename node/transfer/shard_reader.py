"""One shard read from one holder.

A `ShardReader` follows one response from a window to the shard's end, checks the leaf list against the encoding's root and every
leaf on arrival, and hands whole verified windows to the board. It never judges whether it is too slow: it keeps the stamps by
which `fetch.py` does. What a killed process had received isn't read again (`leftovers.py`).
"""

from __future__ import annotations

import time

from node.transfer.fetch_board import Board, Shape
from node.transfer.jobs import Source
from node.transfer.leftovers import Leftovers, label
from node.transfer.lines import Broken, Line, Lines, OtherCertificate
from node.transfer.slots import Slot
from node.transfer.sources import (
    MAX_ERROR,
    MAX_URLS,
    Access,
    Connections,
    Evidence,
    Grants,
    SourceFailed,
    WrongBytes,
    refusal,
    shard_path,
)
from protocol import limits
from protocol.encoding import leaf_digests, shard_root
from protocol.errors import BadInput
from protocol.grants import header_from
from protocol.signing import verify_bytes
from protocol.windows import DOMAIN as WINDOW_DOMAIN
from protocol.windows import SIGNATURE, window_body


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
        self._here = 0
        """Leaves from `position` on that needn't be read."""

    @property
    def finished(self) -> bool:
        return self.position >= self._shape.windows

    async def run(self, connections: Connections, grants: Grants) -> None:
        """To the shard's end. `SourceFailed`: try another; `WrongBytes`: set the shard aside (see `evidence`)."""
        access = await grants.of(self.source.peer)
        if len(access.tls) != 32:
            raise SourceFailed(self.source.peer, "gave a certificate digest that isn't SHA-256")
        first = self._shape.first_leaf(self.position)
        here = connections.leftovers.count(self._shape.encoding, self.source.shard, first, self._shape.length)
        # One leaf is read in any case: with it comes the list by which those that are here are checked.
        self._here = min(here, self._shape.leaves - first - 1)
        try:
            await self._begin(connections.lines, access, first + self._here)
            await self._follow(connections, access)
            self._keep_line(connections.lines, access)
        except Broken as error:
            raise SourceFailed(self.source.peer, str(error)) from error
        finally:
            if self._line is not None:
                self._line.close()

    def _keep_line(self, lines: Lines, access: Access) -> None:
        if self._line is not None:
            lines.keep(self._line, access.tls)
            self._line = None

    def _path(self, first: int) -> str:
        """To the shard's end; to the end of its window where `first` isn't a window's, so that what follows comes in whole windows."""
        into = (first - self._shape.origin) % limits.WINDOW_LEAVES
        rest = self._shape.leaves - first
        count = min(rest, limits.WINDOW_LEAVES - into) if into else rest
        leaves = "" if self.source.shard in self._board.leaves else "&leaves=1"
        return f"{shard_path(self._shape.encoding, self.source.shard)}?first={first}&count={count}{leaves}"

    async def _begin(self, lines: Lines, access: Access, first: int) -> None:
        """Asks for the shard from leaf `first` on, on a line that is open, else on a new one, and takes the leaf list that comes first."""
        path, grant = self._path(first), header_from(access.grant)
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

    async def _follow(self, connections: Connections, access: Access) -> None:
        for window in range(self.position, self._shape.windows):
            self.position = window
            self.resting = True
            await self._board.room(window)
            self.resting = False
            self.since = time.monotonic()
            if not self._here and self._line is not None and not self._line.left:
                # What was asked for ended with the window before.
                self._keep_line(connections.lines, access)
                await self._begin(connections.lines, access, self._shape.first_leaf(window))
            await self._window(window, connections.leftovers)
        self.position = self._shape.windows

    async def _window(self, window: int, leftovers: Leftovers) -> None:
        size = self._shape.window_length(window)
        slot = self._board.slot()
        try:
            here = min(size, self._take_up(window, slot, leftovers))
            if here < size:
                await self._read(window, slot, here, size)
        except BaseException:
            self._board.give_back(slot)
            raise
        self._board.deliver(window, self.source.shard, slot, None if here else time.monotonic() - self.since)

    def _take_up(self, window: int, slot: Slot, leftovers: Leftovers) -> int:
        """Labels the slot and moves what is here already into it: how many bytes (of whole leaves)."""
        first, shard = self._shape.first_leaf(window), self.source.shard
        digests = self._listed(first)
        label(slot, self._shape.encoding, shard, first, digests)
        here = min(self._here, len(digests) // 32)
        if not here:
            return 0
        view = slot.view[: min(here * limits.LEAF, self._shape.window_length(window))]
        moved = leftovers.move(self._shape.encoding, shard, first, view)
        self._here -= here
        if not moved or b"".join(leaf_digests(view)) != digests[: 32 * here]:
            leftovers.drop(self._shape.encoding)
            raise Broken("isn't to blame: what was left here of an earlier read is damaged")
        return here * limits.LEAF

    def _listed(self, first: int) -> bytes:
        """Digests of the leaves of a window that begins with leaf `first`."""
        return self._board.leaves[self.source.shard][32 * first : 32 * (first + limits.WINDOW_LEAVES)]

    async def _read(self, window: int, slot: Slot, here: int, size: int) -> None:
        """The window's bytes from `here` on, in a frame of their own."""
        if self._line is None:
            raise Broken("was given up")
        await self._line.fill(slot.view[here : size + SIGNATURE], self._note)
        self.reading += time.monotonic() - self.since
        if self._board.wants(window, self.source.shard):
            first = self._shape.first_leaf(window) + here // limits.LEAF
            self._check(first, slot.view[here:size], bytes(slot.view[size : size + SIGNATURE]))

    def _check(self, first: int, view: memoryview, signature: bytes) -> None:
        # A third of a millisecond: a hop to a thread and back would cost as much.
        digests = b"".join(leaf_digests(view))
        expected = self._listed(first)[: len(digests)]
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
