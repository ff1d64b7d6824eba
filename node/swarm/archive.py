"""All signed records this node keeps, and what two nodes tell each other to end with the same ones. Pure.

Two nodes compare 64 sums, each the XOR of the marks of one bucket; of buckets that differ the asked one lists its
marks, whole buckets by lot where all don't fit into one answer, and each sends what the other lacks. Joining is the same with empty hands.
Sums and buckets are kept up record by record: comparing costs the same whether a thousand records are here or two hundred thousand. Sums
of marks under a keyless hash can be steered by a signer of many records, which hides a difference at worst until the next push: no record
is ever accepted because of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from node.swarm.book import MARK, Kept, Outcome, mark_of
from node.swarm.catalog import Catalog
from node.swarm.holdings import MAX_HOLDING, HoldingBook
from node.swarm.peers import PeerBook
from node.swarm.private import ReadersBook
from node.swarm.revocations import MAX_REVOCATIONS_RECORD, RevocationBook
from protocol import limits
from protocol.errors import BadInput
from protocol.framing import unpack
from protocol.ids import ModelId, PeerId
from protocol.records import (
    CARD_DOMAIN,
    HOLDING_DOMAIN,
    NODE_DOMAIN,
    READERS_DOMAIN,
    REVOCATIONS_DOMAIN,
    Card,
    Holding,
    NodeRecord,
    Readers,
    Revocations,
    open_record,
)
from protocol.signing import Envelope

BUCKETS = 64
MAX_NODE_RECORD = 16 * limits.KIB
_MOST_REFUSED = 65_536
_SIZES = {
    NODE_DOMAIN: MAX_NODE_RECORD,
    HOLDING_DOMAIN: MAX_HOLDING,
    CARD_DOMAIN: limits.MAX_CARD,
    READERS_DOMAIN: limits.MAX_READERS_RECORD,
    REVOCATIONS_DOMAIN: MAX_REVOCATIONS_RECORD,
}

AnyKept = Kept[NodeRecord] | Kept[Holding] | Kept[Card] | Kept[Revocations] | Kept[Readers]


@dataclass(frozen=True)
class Taken:
    """What became of an envelope; `kind` is peer, holding, card, revocations or readers."""

    kind: str
    outcome: Outcome
    kept: AnyKept


def kind_of(kept: AnyKept) -> str:
    return _KINDS[type(kept.record)]


_KINDS: dict[type, str] = {NodeRecord: "peer", Holding: "holding", Card: "card", Revocations: "revocations", Readers: "readers"}


class Archive:
    def __init__(self) -> None:
        self.peers = PeerBook()
        self.holdings = HoldingBook()
        self.catalog = Catalog()
        self.revocations = RevocationBook()
        self.readers = ReadersBook()
        self._by_mark: dict[bytes, AnyKept] = {}
        self._buckets = Buckets()
        """Of all but NodeRecords: whether one of these may be passed on changes with handshakes."""
        self._refused: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._by_mark)

    def knows(self, envelope: bytes) -> bool:
        """Whether these very bytes are kept: asked before a signature is checked."""
        return self.has(mark_of(envelope))

    def has(self, mark: bytes) -> bool:
        return mark in self._by_mark

    def lacks(self, mark: bytes) -> bool:
        """Neither kept nor refused lately for want of room: worth asking for."""
        return mark not in self._by_mark and mark not in self._refused

    def take(self, envelope: bytes, now: float, pinned: Callable[[PeerId], bool]) -> Taken | None:
        """Checks and keeps an envelope; None for a domain this version doesn't know, `BadInput` where a rule is broken."""
        domain = unpack(envelope, Envelope, "record").domain
        if domain not in _SIZES:
            return None
        if len(envelope) > _SIZES[domain]:
            raise BadInput(f"{domain}: {len(envelope)} bytes, at most {_SIZES[domain]} allowed")
        if domain == NODE_DOMAIN:
            node = self._opened(envelope, NodeRecord, now)
            return self._entered("peer", *self.peers.offer(node, pinned(node.signer)), node)
        if domain == HOLDING_DOMAIN:
            holding = self._opened(envelope, Holding, now)
            return self._entered("holding", *self.holdings.offer(holding, pinned(holding.signer)), holding)
        if domain == REVOCATIONS_DOMAIN:
            said = self._opened(envelope, Revocations, now)
            return self._entered("revocations", *self.revocations.offer(said, pinned(said.signer)), said)
        if domain == READERS_DOMAIN:
            readers = self._opened(envelope, Readers, now)
            return self._entered("readers", *self.readers.offer(readers, pinned(readers.signer)), readers)
        card = self._opened(envelope, Card, now)
        return self._entered("card", *self.catalog.offer(card, pinned(card.signer)), card)

    @staticmethod
    def _opened(envelope: bytes, kind: type, now: float) -> Kept:  # type: ignore[type-arg]
        signer, record = open_record(envelope, kind, now)
        return Kept(signer, record, envelope, mark_of(envelope))

    def _entered(self, kind: str, outcome: Outcome, gone: Iterable[AnyKept], kept: AnyKept) -> Taken:
        for old in gone:
            self._drop(old)
        if outcome is Outcome.NEW:
            self._by_mark[kept.mark] = kept
            if kind != "peer":
                self._buckets.add(kept.mark)
        elif outcome is Outcome.FULL:
            self._refused[kept.mark] = None
            while len(self._refused) > _MOST_REFUSED:
                self._refused.pop(next(iter(self._refused)))
        return Taken(kind, outcome, kept)

    def _drop(self, kept: AnyKept) -> None:
        if self._by_mark.pop(kept.mark, None) is not None and not isinstance(kept.record, NodeRecord):
            self._buckets.remove(kept.mark)

    def expire(self, now: float) -> list[AnyKept]:
        """Drops and returns what has expired."""
        gone: list[AnyKept] = [*self.peers.expire(now), *self.holdings.expire(now), *self.catalog.expire(now)]
        gone += [*self.revocations.expire(now), *self.readers.expire(now)]
        for kept in gone:
            self._drop(kept)
        if gone:
            self._refused.clear()
        return gone

    def sums(self, shown: Callable[[AnyKept], bool]) -> bytes:
        """64 sums of 16 bytes, of what may be passed on."""
        return self._buckets.sums(self._shown_peers(shown))

    def listed(self, buckets: Iterable[int], shown: Callable[[AnyKept], bool], most: int) -> tuple[list[bytes], list[int]]:
        """Marks of what may be passed on in these buckets, whole ones in their order while they fit into `most`, and which those are."""
        peers: dict[int, list[bytes]] = {}
        for mark in self._shown_peers(shown):
            peers.setdefault(bucket_of(mark), []).append(mark)
        marks, whole = list[bytes](), list[int]()
        for bucket in buckets:
            here = [*self._buckets.of(bucket), *peers.get(bucket, ())]
            if len(marks) + len(here) <= most:
                marks += here
                whole.append(bucket)
            elif not marks:  # one that never fits: its newest at least
                marks += here[-most:]
        return marks, whole

    def _shown_peers(self, shown: Callable[[AnyKept], bool]) -> list[bytes]:
        return [kept.mark for kept in self.peers.all() if shown(kept)]

    def all_marks(self) -> set[bytes]:
        return set(self._by_mark)

    def envelopes(self, marks: Iterable[bytes], room: int) -> list[bytes]:
        """Envelopes of these marks, in order, until the next would exceed `room` bytes."""
        found: list[bytes] = []
        for mark in marks:
            kept = self._by_mark.get(mark)
            if kept is None:
                continue
            room -= len(kept.envelope) + 8
            if room < 0 and found:
                break
            found.append(kept.envelope)
        return found

    def sequence_of(self, kind: str, own: PeerId, subject: tuple[str, ...] | ModelId | None = None) -> int:
        """The highest sequence number known of one of this node's own records, -1 when there is none."""
        kept: AnyKept | None = None
        if kind == "peer":
            kept = self.peers.get(own)
        elif kind == "revocations":
            kept = self.revocations.get(own)
        elif kind == "holding" and isinstance(subject, bytes):
            kept = self.holdings.get(own, ModelId(subject))
        elif kind == "readers" and isinstance(subject, bytes):
            kept = self.readers.get(own, ModelId(subject))
        elif isinstance(subject, tuple):
            kept = self.catalog.get(own, subject[0], subject[1])
        return kept.record.sequence if kept else -1


class Buckets:
    """Marks by the bucket they fall into, and each bucket's sum."""

    def __init__(self) -> None:
        self._marks: list[dict[bytes, None]] = [{} for _ in range(BUCKETS)]
        self._sums = [0] * BUCKETS

    def add(self, mark: bytes) -> None:
        self._marks[bucket_of(mark)][mark] = None
        self._sums[bucket_of(mark)] ^= int.from_bytes(mark, "big")

    def remove(self, mark: bytes) -> None:
        del self._marks[bucket_of(mark)][mark]
        self._sums[bucket_of(mark)] ^= int.from_bytes(mark, "big")

    def of(self, bucket: int) -> list[bytes]:
        return list(self._marks[bucket])

    def sums(self, more: Iterable[bytes]) -> bytes:
        """With these marks too."""
        totals = list(self._sums)
        for mark in more:
            totals[bucket_of(mark)] ^= int.from_bytes(mark, "big")
        return b"".join(total.to_bytes(MARK, "big") for total in totals)


def bucket_of(mark: bytes) -> int:
    return mark[0] % BUCKETS


def differing(mine: bytes, theirs: bytes) -> list[int]:
    return [i for i in range(BUCKETS) if mine[i * MARK : (i + 1) * MARK] != theirs[i * MARK : (i + 1) * MARK]]


def split_marks(joined: bytes) -> list[bytes]:
    return [joined[at : at + MARK] for at in range(0, len(joined), MARK)]
