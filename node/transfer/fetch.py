"""One group fetched from many holders: k shards at once, spares beside the slow, every leaf checked, decoded as it comes.

Each of k lanes reads one shard from one holder. `GroupFetch` watches them: a holder that fails or lies is replaced at once; one that
gives no first byte, stalls, or holds everybody up while the others have long delivered the same window, gets a spare started beside
it (a hedge). Windows take whichever k shards come first, so the hedge needs no decision about who is right: the one left behind
once k others are past it is dropped.

Rejected: asking every holder for everything (n/k times the bytes), splitting ranges over all n (one slow holder then delays
every segment), cancelling the slow before the spare has shown itself (a short pause would cost a whole connection).
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import Counter
from collections.abc import Awaitable, Iterator

from node.transfer.decoding import Decoding
from node.transfer.fetch_assemble import shard_offset
from node.transfer.fetch_board import Board, Shape
from node.transfer.jobs import Fetched, FetchGroup, Source
from node.transfer.shard_reader import ShardReader
from node.transfer.slots import Slot
from node.transfer.sources import Callbacks, Connections, Grants, SourceFailed, WrongBytes
from protocol import limits
from protocol.encoding import encoding_id, parse_encoding
from protocol.errors import BadInput, DeadlineExceeded, PeerFault, Unavailable

FIRST_BYTE_WITHIN = 0.7
STALLED_AFTER = 1.0
LAGGING_AFTER = 0.1
LAGGING_FACTOR = 3.0
ALONE_AFTER = 2.0
"""Where too few others have delivered the window to compare with (k = 1 has none): one of 1 MiB that takes longer gets a spare."""

SPARE_GRANTS = 2
TRIES = 3
_TICK = 0.05
_LATE = 0.3
_PROGRESS_EVERY = 0.2
_SLOWEST = 128 * limits.KIB
_CALLBACK_WITHIN = 5.0
log = logging.getLogger(__name__)


async def fetch_group(job: FetchGroup, decoding: Decoding, connections: Connections, callbacks: Callbacks) -> Fetched:
    """Has the whole group decoded by `decoding`, which is ended by the time this returns.

    `Unavailable`: fewer than k shards can be had, its details say how many are missing and who was asked; `PeerFault`: the
    encoding itself doesn't decode, naming its signer; `DeadlineExceeded`; `StorageFull`; `BadInput`: a broken envelope.
    """
    fetch = GroupFetch(job, decoding, connections, callbacks)
    try:
        async with asyncio.timeout(fetch.deadline):
            return await fetch.run()
    except TimeoutError as error:
        raise DeadlineExceeded(f"{fetch.name} wasn't read within {fetch.deadline:.0f} s", details=fetch.situation()) from error


class GroupFetch:
    """The lanes of one fetch and the rules by which they are started, doubled and dropped."""

    def __init__(self, job: FetchGroup, decoding: Decoding, connections: Connections, callbacks: Callbacks) -> None:
        self._signer, self._record = parse_encoding(job.envelope)
        encoding = encoding_id(job.envelope)
        self._job = job
        self._shape = Shape.of(encoding, self._record).beginning(shard_offset(self._record, job.done))
        self._board = Board(self._shape, connections.slots, lambda count: connections.turns.came(self, count))
        self._decoding = decoding
        self._connections = connections
        self._callbacks = callbacks
        sources = in_order(job.sources, self._record.k, len(self._record.roots))
        self._sources = sorted(sources, key=lambda source: not connections.leftovers.has(encoding, source.shard))
        self._grants = Grants(encoding, self._sources, job.granted or [], callbacks)
        self._lanes: dict[asyncio.Task[None], ShardReader] = {}
        self._ended: list[ShardReader] = []
        self._tries: Counter[tuple[str, int]] = Counter()
        self._lied: set[tuple[str, int]] = set()
        self._failures: dict[str, str] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._told = 0.0
        self.name = f"a group (encoding {encoding.hex()[:16]})"
        self.deadline = 60 + self._shape.length * self._record.k / _SLOWEST

    async def run(self) -> Fetched:
        loop = asyncio.get_running_loop()
        began = loop.time()
        assembling = asyncio.create_task(self._assemble(), name="assembling a group")
        assembling.add_done_callback(lambda _: self._board.wake())
        try:
            for source in self._sources[: self._record.k + SPARE_GRANTS]:
                self._grants.prefetch(source.peer)
            await self._connections.turns.enter(self, self._shape.length * self._record.k)
            while self._board.front < self._shape.windows and not assembling.done():
                self._reap()
                self._drop_the_overtaken()
                self._fill_lanes()
                self._tell_progress()
                before = loop.time()
                await self._board.change(_TICK)
                # A late wake means this machine is overloaded: silence is then no sign of a slow peer.
                if loop.time() - before < _TICK + _LATE:
                    self._hedge()
            self._reap()
            self._drop_the_overtaken()
            await _first_fault(assembling)
        finally:
            await self._close(assembling)
        return self._result(loop.time() - began)

    def situation(self) -> dict[str, object]:
        """Who was asked and what became of it, for an error's details."""
        usable = len({reader.source.shard for reader in self._readers()})
        return {
            "needed": self._record.k,
            "missing": max(0, self._record.k - usable),
            "asked": sorted({peer for peer, _ in self._tries}),
            "failures": dict(self._failures),
            "windows_done": self._board.assembled,
            "windows": self._shape.windows,
        }

    # The lanes.

    def _readers(self) -> Iterator[ShardReader]:
        """Lanes that run or have come to the shard's end."""
        yield from self._lanes.values()
        yield from (reader for reader in self._ended if reader.finished)

    def _fill_lanes(self) -> None:
        while self._board.front < self._shape.windows:
            healthy = {reader.source.shard for reader in self._readers() if not reader.hedged}
            if len(healthy) >= self._record.k:
                return
            source = self._next_source(healthy)
            if source is None:
                break
            self._start(source)
        if len({reader.source.shard for reader in self._readers()}) < self._record.k and self._board.front < self._shape.windows:
            self._give_up()

    def _next_source(self, healthy: set[int]) -> Source | None:
        running = {(reader.source.peer, reader.source.shard) for reader in self._lanes.values()}
        slow = {reader.source.shard for reader in self._lanes.values()}
        busy = {peer for peer, _ in running}

        def rank(place: int) -> tuple[int, bool, bool, bool, int]:
            peer, shard = self._sources[place].peer, self._sources[place].shard
            doubtful = peer in self._failures or self._connections.lagging.has(peer)
            return self._tries[peer, shard], doubtful, shard in slow, peer in busy, place

        def usable(source: Source) -> bool:
            name = (source.peer, source.shard)
            return source.shard not in healthy and name not in running and name not in self._lied and self._tries[name] < TRIES

        places = [place for place, source in enumerate(self._sources) if usable(source)]
        return self._sources[min(places, key=rank)] if places else None

    def _start(self, source: Source) -> None:
        reader = ShardReader(source, self._shape, self._board, self._board.front)
        task = asyncio.create_task(reader.run(self._connections, self._grants), name=f"shard {source.shard} from {source.peer}")
        task.add_done_callback(lambda _: self._board.wake())
        self._lanes[task] = reader
        self._tries[source.peer, source.shard] += 1

    def _reap(self) -> None:
        for task in [task for task in self._lanes if task.done()]:
            reader = self._lanes.pop(task)
            self._ended.append(reader)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, WrongBytes):
                self._set_aside(reader, error.reason)
            elif isinstance(error, SourceFailed):
                self._failed(reader, error.reason)
            elif error is not None:
                raise error

    def _set_aside(self, reader: ShardReader, reason: str) -> None:
        peer, shard = reader.source.peer, reader.source.shard
        self._lied.add((peer, shard))
        self._failures[peer] = reason
        fields = {"peer": peer, "encoding": self._shape.encoding.hex(), "shard": shard, "reason": reason}
        log.warning(
            "node %s sent wrong bytes of shard %d: %s",
            peer,
            shard,
            reason,
            extra={"event": "leaf_fault", "fields": fields},
        )
        self._call(self._callbacks.leaf_fault(peer, self._shape.encoding, shard, reason, reader.evidence))

    def _failed(self, reader: ShardReader, reason: str) -> None:
        self._failures[reader.source.peer] = reason
        if not reader.received:
            # Never a byte: asking the same node again would cost another deadline.
            self._tries[reader.source.peer, reader.source.shard] = TRIES
        log.info("shard %d from node %s: %s", reader.source.shard, reader.source.peer, reason)

    def _drop_the_overtaken(self) -> None:
        """Once k shards are past a reader's window, it has nothing to add."""
        past = {reader.source.shard for reader in self._readers() if reader.position >= self._board.front}
        overtaken = [task for task, reader in self._lanes.items() if reader.position < self._board.front]
        if len(past) < self._record.k or not overtaken:
            return
        for task in overtaken:
            task.cancel()
            if self._lanes[task].hedged:
                self._connections.lagging.add(self._lanes[task].source.peer)
        for reader in self._readers():
            # Who was slow and is ahead now is in its stride again; else another spare would be started in the dropped one's place.
            reader.hedged = reader.position < self._board.front

    def _hedge(self) -> None:
        now = asyncio.get_running_loop().time()
        front = self._board.front
        others = self._board.seconds_taken(front)
        for reader in self._lanes.values():
            if not reader.hedged and not reader.resting and reader.position <= front and self._is_slow(reader, now, others):
                reader.hedged = True
                fields = {"peer": reader.source.peer, "shard": reader.source.shard, "window": front}
                log.info("node %s is slow: a spare is asked", reader.source.peer, extra={"event": "hedged", "fields": fields})

    def _is_slow(self, reader: ShardReader, now: float, others: list[float]) -> bool:
        """`others`: the seconds that this window took those who have delivered it."""
        if reader.heard is None:
            return now - reader.started > FIRST_BYTE_WITHIN
        if now - max(reader.heard, reader.since) > STALLED_AFTER:
            return True
        took = now - reader.since
        if self._record.k == 1:
            return took > ALONE_AFTER
        if 2 * len(others) < self._record.k:
            return took > ALONE_AFTER and self._is_alone_slow(took, others)
        return took > max(LAGGING_AFTER, LAGGING_FACTOR * statistics.median(others))

    def _is_alone_slow(self, took: float, others: list[float]) -> bool:
        """Most are slow: the holders, or this node's own line? One spare shows it: if it isn't quicker, no other follows."""
        if others:
            return took > LAGGING_FACTOR * min(others)
        return not any(reader.hedged for reader in self._lanes.values())

    def _give_up(self) -> None:
        situation = self.situation()
        asked = ", ".join(situation["asked"]) if isinstance(situation["asked"], list) else ""
        reasons = "; ".join(f"{peer} {reason}" for peer, reason in self._failures.items())
        raise Unavailable(
            f"{self.name} can't be read: {situation['missing']} of the {self._record.k} shards needed are missing; "
            f"asked {asked or 'nobody, no holder is known'}{f' ({reasons})' if reasons else ''}",
            hint="wait until more of its holders are reachable",
            details=situation,
        )

    # The bytes.

    async def _assemble(self) -> None:
        """Windows are handed over as they come, in order, without waiting for those before: the answers lag behind a busy loop."""
        async with asyncio.TaskGroup() as under_way:
            for _ in range(self._shape.windows):
                window, got = await self._board.next_ready()
                spare = [self._board.slot() for shard in range(self._record.k) if shard not in got]
                under_way.create_task(self._decode(window, got, spare))

    async def _decode(self, window: int, got: dict[int, Slot], spare: list[Slot]) -> None:
        try:
            free = await self._decoding.window(window, got, spare)
        except BadInput as error:
            raise PeerFault(
                f"{self.name} doesn't decode as its signer {self._signer} declared: {error.message}",
                details={"peer": self._signer, "encoding": self._shape.encoding.hex()},
            ) from error
        for slot in free:
            self._board.give_back(slot)
        self._board.window_assembled()

    # Telling and ending.

    def _tell_progress(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told >= _PROGRESS_EVERY and self._shape.windows:
            self._told = now
            done = self._record.length * self._board.assembled // self._shape.windows
            self._call(self._callbacks.progress(self._job.job, done, self._record.length))

    def _call(self, call: Awaitable[None]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(_CALLBACK_WITHIN):
                    await call
            except (TimeoutError, Unavailable) as error:
                log.warning("the node didn't take a message of a fetch: %s", error or "no answer in time")

        task = asyncio.create_task(bounded())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _close(self, assembling: asyncio.Task[None]) -> None:
        # Faults found in the last moment are told too, though nobody waits for those shards any more.
        self._note_last_faults()
        rest = [assembling, *self._lanes, *self._grants.tasks()]
        self._connections.turns.leave(self)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        self._connections.leftovers.drop(self._shape.encoding)
        for slot in await self._decoding.end():
            self._board.give_back(slot)
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _note_last_faults(self) -> None:
        for task in [task for task in self._lanes if task.done() and not task.cancelled()]:
            error = task.exception()
            if isinstance(error, WrongBytes):
                self._set_aside(self._lanes.pop(task), error.reason)

    def _result(self, seconds: float) -> Fetched:
        readers = [*self._ended, *self._lanes.values()]
        moved: Counter[str] = Counter()
        spent: dict[str, float] = {}
        for reader in readers:
            moved[reader.source.peer] += reader.received
            spent[reader.source.peer] = spent.get(reader.source.peer, 0.0) + reader.reading
        return Fetched(
            bytes=moved.total(),
            seconds=seconds,
            asked=sorted({peer for peer, _ in self._tries}),
            speeds={peer: size / max(spent[peer], size / (2 * limits.GIB)) for peer, size in moved.items() if size},
            moved=dict(moved),
        )


async def _first_fault(assembling: asyncio.Task[None]) -> None:
    try:
        await assembling
    except BaseExceptionGroup as faults:
        raise faults.exceptions[0] from None


def in_order(sources: list[Source], k: int, shards: int) -> list[Source]:
    """Data shards first, since they need no arithmetic; known slow holders last; otherwise in the order given."""
    for source in sources:
        if not 0 <= source.shard < shards:
            raise BadInput(f"fetch: there is no shard {source.shard} of {shards}")
    best = max((source.speed for source in sources if source.speed), default=0.0)
    return sorted(sources, key=lambda s: (bool(s.speed) and (s.speed or 0.0) < best / 4, s.shard >= k))
