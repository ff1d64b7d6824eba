"""A group's plain bytes in a mapping, from any k of its shards, verified against the manifest before anyone may use them.

The transfer process reads, checks leaves, decodes and writes into the descriptor given; here sources are chosen, grants fetched,
faults noted and the result compared with the manifest's tensor digests. An encoding that passes its own leaves but
decodes to other tensors was a lie of its signer, who is blamed. Small groups land in a memfd, larger ones in an unlinked
file of the data directory, which the kernel may write out.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from node.grant_book import GrantBook
from node.hurry import is_behind
from node.locate import KnownEncoding, Located, check_open
from node.swarm.interface import Swarm
from node.traffic import note
from node.transfer.finishing import to_the_end
from node.transfer.jobs import Fetched, FetchGroup, Granted, Source, TargetSpan
from node.transfer.marks import read_mark
from node.transfer.remote import Transfer
from protocol import limits
from protocol.errors import MfError, PeerFault, StorageFull, Unavailable
from protocol.grouping import files_group_id, group_id
from protocol.ids import PeerId, digest, encoding_text, model_text
from protocol.manifest import Manifest
from protocol.messages import GrantAsk

log = logging.getLogger(__name__)
MEMFD_MOST = 256 * limits.MIB
ATTEMPTS = 3
PATIENCE, PAUSE = 3.0, 0.5
SILENT_FOR = 10.0
SLOWEST = 1.0
"""Bytes a second."""
FIRST_GRANTS = 4
GRANTS_AHEAD = 512 * limits.MIB
"""Bytes of groups for which grants are asked at once: they keep for less than a minute."""
Progress = Callable[[int, int], None]


@dataclass
class GroupBytes:
    """`length` verified bytes in descriptor `fd`, which belongs to the holder of this object; `close` it."""

    group: int
    fd: int
    length: int
    received: int = 0
    """Bytes over the network."""

    def read(self) -> bytes:
        return os.pread(self.fd, self.length, 0)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True)
class Places:
    """Where a group's bytes go in files: `spans` of `fds`; (descriptor, place in it) of its `mark`. They stay the asker's."""

    spans: list[TargetSpan]
    fds: list[int]
    mark: tuple[int, int]


class Assembler:
    def __init__(self, swarm: Swarm, transfer: Transfer, grants: GrantBook, executor: Executor, scratch: Path) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._grants = grants
        self._executor = executor
        self._scratch = scratch
        self._speeds: dict[str, float] = {}
        self._silent: dict[str, float] = {}

    async def group(self, located: Located, group: int) -> GroupBytes:
        """The group, or `Unavailable` naming it, how many shards are missing and who was asked.

        Encodings are tried in turn: one that can't be read now, or decodes to other bytes, hides no other.
        """
        fault: Unavailable | None = None
        for known in self._usable(located, group)[:ATTEMPTS]:
            try:
                return await self.only(located, group, known)
            except Unavailable as error:
                log.info("an encoding of a group didn't do: %s", error)
                fault = error
        assert fault is not None  # _usable gives one at least
        raise fault

    async def only(self, located: Located, group: int, known: KnownEncoding) -> GroupBytes:
        """The group from this encoding and no other, compared with the manifest: `PeerFault`, and its signer blamed, where it lies."""
        check_open(located)
        entry = located.manifest.groups[group]
        room = GroupBytes(group, self._room(entry.length), entry.length)
        try:
            fetched = await self._fetch(located, group, known, [room.fd])
            wrong = await self._wrong(located.manifest, group, room.fd)
        except BaseException:
            room.close()
            raise
        if wrong is not None:
            room.close()
            self._blame_signer(located, known, wrong)
            raise PeerFault(f"group {entry.name} of {model_text(located.model)}: an encoding by {known.signer} decodes to other bytes")
        self._learn(fetched)
        room.received = fetched.bytes
        return room

    def expect(self, located: Located, groups: Sequence[int]) -> None:
        """These groups are read next, in this order: leave to read them is asked for ahead, in few questions."""
        asks: dict[PeerId, list[GrantAsk]] = {}
        size = 0
        for asked, group in enumerate(groups[: limits.MAX_GRANTS_ASKED], 1):
            for peer, ask in self._asks(located, group):
                asks.setdefault(peer, []).append(ask)
            size += located.manifest.groups[group].length
            if size > GRANTS_AHEAD:
                break
            if asked == FIRST_GRANTS:
                # Those needed at once come first: a grant for each of a hundred groups takes a holder some time to sign.
                self._expect(asks)
                asks = {}
        self._expect(asks)

    async def straight(self, located: Located, group: int, places: Places) -> int:
        """The group written to its places in files, from its mark on; bytes over the network. The leaves are checked, so that a lying
        holder is found; the manifest isn't: the caller compares each whole file with it before anyone may use a byte, and takes `group`
        where one is wrong."""
        check_open(located)
        known = self._usable(located, group)[0]
        fetched = await self._fetch(located, group, known, [*places.fds, places.mark[0]], places)
        self._learn(fetched)
        return fetched.bytes

    def _room(self, length: int) -> int:
        if length <= MEMFD_MOST:
            fd = os.memfd_create("group", os.MFD_CLOEXEC)
        else:
            fd, path = tempfile.mkstemp(prefix="assemble-", dir=self._scratch)
            os.unlink(path)
        try:
            os.ftruncate(fd, length)
        except OSError as error:
            os.close(fd)
            raise StorageFull(f"no room for a group of {length} bytes: {error.strerror}") from error
        return fd

    def _usable(self, located: Located, group: int) -> list[KnownEncoding]:
        """Encodings not found false, those with the most shards to spare among routable holders first; at least one."""
        name, model = located.manifest.groups[group].name, model_text(located.model)
        usable = [known for known in located.encodings.get(group, []) if known.id not in located.blamed]
        if not usable:
            raise Unavailable(
                f"group {name} of {model}: no encoding is known among the reachable holders",
                hint="its holders may be away",
                details={"group": name, "missing": None, "asked": [view.peer for view in self._swarm.holdings(located.model)]},
            )
        return sorted(usable, key=lambda known: (len(self._swarm.holders(known.id)) - known.record.k, known.id), reverse=True)

    def _sources(self, known: KnownEncoding) -> list[Source]:
        """Every (peer, shard) that may be asked: data shards first, quick peers first, the lately silent last."""
        offered = [
            Source(peer=peer, shard=shard, speed=self._speed(peer))
            for shard, peers in self._swarm.holders(known.id).items()
            for peer in peers
            if not self._swarm.banned(peer) and not self._swarm.set_aside(known.id, shard, peer)
        ]
        return sorted(offered, key=lambda source: (source.shard >= known.record.k, -(source.speed or 0.0), source.shard, source.peer))

    def _speed(self, peer: str) -> float | None:
        """As measured. One that gave nothing a moment ago counts as the slowest: else each group would wait for it anew."""
        silent = time.monotonic() - self._silent.get(peer, -SILENT_FOR) < SILENT_FOR
        return SLOWEST if silent else self._speeds.get(peer)

    async def _fetch(self, located: Located, group: int, known: KnownEncoding, fds: list[int], places: Places | None = None) -> Fetched:
        """Where too few holders answer it tries again for a moment: with no shard to spare, one busy holder must not fail a request."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return await self._fetch_once(located, group, known, fds, places)
            except Unavailable as error:
                if time.monotonic() >= until:
                    raise
                log.info("trying again: %s", error.message, extra={"event": "fetch_again", "fields": {"group": group}})
            await asyncio.sleep(PAUSE)

    async def _fetch_once(self, located: Located, group: int, known: KnownEncoding, fds: list[int], places: Places | None) -> Fetched:
        sources = self._sources(known)
        distinct = len({source.shard for source in sources})
        if distinct < known.record.k:
            raise self._too_few(located, group, known, distinct, [source.peer for source in sources])
        granted = self._granted(located, group, known, sources)
        job = FetchGroup(job=uuid.uuid4().hex, envelope=known.envelope, offset=0, sources=sources, granted=granted, secret=located.secret)
        job.behind = is_behind()
        if places is not None:
            job.spans, job.mark, job.done = places.spans, places.mark[1], read_mark(*places.mark)
        try:
            fetched = await self._transfer.fetch_group(job, *fds)
        except PeerFault as error:
            self._blame_signer(located, known, error.message)
            raise
        except Unavailable as error:
            name = located.manifest.groups[group].name
            details = {**error.details, "group": name, "model": model_text(located.model)}
            raise Unavailable(f"group {name} of {model_text(located.model)}: {error.message}", hint=error.hint, details=details) from error
        note(received=sum(size for peer, size in fetched.moved.items() if peer != self._grants.me))  # its own shards take no network
        return fetched

    def _granted(self, located: Located, group: int, known: KnownEncoding, sources: list[Source]) -> list[Granted]:
        """Grants that are here already; for the others, and for the groups after this one, they are asked for now."""
        first = _first_peers(sources, known.record.k)
        if not all(self._grants.expected(peer, known.id) for peer in first):
            self.expect(located, range(group, len(located.manifest.groups)))
        replies = [(peer, self._grants.in_store(peer, known.id)) for peer in first]
        return [Granted(peer=peer, urls=reply.urls, tls=reply.tls, grant=reply.grant) for peer, reply in replies if reply is not None]

    def _asks(self, located: Located, group: int) -> Iterator[tuple[PeerId, GrantAsk]]:
        try:
            known = self._usable(located, group)[0]
        except Unavailable:
            return
        sources = self._sources(known)
        for peer in _first_peers(sources, known.record.k):
            yield peer, GrantAsk(known.id, sorted({source.shard for source in sources if source.peer == peer}))

    def _expect(self, asks: dict[PeerId, list[GrantAsk]]) -> None:
        for peer, wanted in asks.items():
            self._grants.expect(peer, wanted)

    def _too_few(self, located: Located, group: int, known: KnownEncoding, have: int, asked: list[str]) -> MfError:
        name, k = located.manifest.groups[group].name, known.record.k
        return Unavailable(
            f"group {name} of {model_text(located.model)}: {have} of the {k} shards needed can be reached, {k - have} missing",
            hint="wait for its holders to come back",
            details={"group": name, "missing": k - have, "needed": k, "asked": sorted(set(asked))},
        )

    async def _wrong(self, manifest: Manifest, group: int, fd: int) -> str | None:
        return await to_the_end(asyncio.get_running_loop().run_in_executor(self._executor, mismatch, manifest, group, fd))

    def _blame_signer(self, located: Located, known: KnownEncoding, wrong: str) -> None:
        located.blamed.add(known.id)
        self._swarm.blame(known.signer, encoding_text(known.id), f"encoding decodes to other bytes at {wrong}")
        log.warning(
            "encoding %s decodes to other bytes than the manifest says (%s); its signer is blamed",
            encoding_text(known.id),
            wrong,
            extra={"event": "encoding_blamed", "fields": {"peer": known.signer, "encoding": encoding_text(known.id)}},
        )

    def speed_of(self, peer: PeerId) -> float | None:
        """Bytes a second read from this peer lately; None where nothing was."""
        return self._speeds.get(peer)

    def _learn(self, fetched: Fetched) -> None:
        self._silent.update(dict.fromkeys(set(fetched.asked) - set(fetched.speeds), time.monotonic()))
        for peer, speed in fetched.speeds.items():
            before = self._speeds.get(peer)
            self._silent.pop(peer, None)
            self._speeds[peer] = speed if before is None else 0.7 * before + 0.3 * speed


def _first_peers(sources: list[Source], k: int) -> list[PeerId]:
    """Who is asked first, and two to spare."""
    return [PeerId(peer) for peer in dict.fromkeys(source.peer for source in sources)][: k + 2]


def mismatch(manifest: Manifest, group: int, fd: int) -> str | None:
    """Name of the first tensor or file run in the group whose bytes differ from the manifest; None when all agree."""
    entry = manifest.groups[group]
    if entry.length == 0:
        return None
    with mmap.mmap(fd, entry.length, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
        if entry.spans is not None:
            return None if files_group_id(entry.length, digest(view)) == entry.id else entry.name
        return _wrong_tensor(manifest, group, view) or _wrong_rows(manifest, group, view)


def _wrong_tensor(manifest: Manifest, group: int, view: memoryview) -> str | None:
    """A tensor that lies whole in the group and isn't what the manifest says."""
    for tensor in manifest.tensors:
        if len(tensor.cuts) == 1 and tensor.cuts[0].group == group:
            cut = tensor.cuts[0]
            if digest(view[cut.at : cut.at + cut.length]) != tensor.digest:
                return tensor.name
    return None


def _wrong_rows(manifest: Manifest, group: int, view: memoryview) -> str | None:
    """Rows of a larger tensor have no digest of their own in the table: the group's id holds them."""
    members: dict[tuple[int, int], tuple[str, list[int], bytes]] = {}
    cut_up: str | None = None
    for tensor in manifest.tensors:
        for cut in tensor.cuts:
            if cut.group == group:
                whole = len(tensor.cuts) == 1
                cut_up = cut_up if whole else tensor.name
                rows = cut.length * tensor.shape[0] // max(1, tensor.length) if tensor.shape else 0
                shape = tensor.shape if whole else [rows, *tensor.shape[1:]]
                found = tensor.digest if whole else digest(view[cut.at : cut.at + cut.length])
                members[cut.at, cut.length] = (tensor.dtype, shape, found)
    if cut_up is None or group_id(members[at] for at in sorted(members)) == manifest.groups[group].id:
        return None
    return cut_up
