"""A bounded book of signed records: one per subject, the higher sequence number wins.

Two records of one subject with the same sequence number (a signer at fault, or its clock) are told apart by
their bytes: the greater mark wins, so that every node ends with the same one whatever the order of arrival.
A full book refuses newcomers, except that a pinned signer's record takes the place of the unpinned one that
expires soonest: a flood of strangers' records can't push out the owner's swarm.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocol import limits
from protocol.ids import PeerId, digest
from protocol.records import Card, Holding, NodeRecord, Readers, Revocations

K = TypeVar("K", bound=Hashable)
R = TypeVar("R", NodeRecord, Holding, Card, Revocations, Readers)

MARK = 16
"""Bytes of a mark."""


def mark_of(envelope: bytes) -> bytes:
    """What names a record's bytes in digests and requests."""
    return digest(envelope)[:MARK]


@dataclass(frozen=True)
class Kept(Generic[R]):
    """A checked record with the envelope it travels in."""

    signer: PeerId
    record: R
    envelope: bytes
    mark: bytes


class Outcome(enum.Enum):
    NEW = "new"
    KNOWN = "known"
    OLDER = "older"
    FULL = "full"


class RecordBook(Generic[K, R]):
    """At most `total` records, at most `per_signer` of one signer."""

    def __init__(self, total: int, per_signer: int) -> None:
        self._total = total
        self._per_signer = per_signer
        self._kept: dict[K, Kept[R]] = {}
        self._pinned: set[K] = set()
        self._counts: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept[R]]:
        return iter(list(self._kept.values()))

    def get(self, key: K) -> Kept[R] | None:
        return self._kept.get(key)

    def offer(self, key: K, kept: Kept[R], pinned: bool = False) -> tuple[Outcome, list[Kept[R]]]:
        """Keeps a record if it is news; also returns the records it took the place of."""
        old = self._kept.get(key)
        if old is not None:
            if kept.mark == old.mark:
                return Outcome.KNOWN, []
            if (kept.record.sequence, kept.mark) < (old.record.sequence, old.mark):
                return Outcome.OLDER, []
            gone = [old]
            self._forget(key)
        else:
            room = self._make_room(kept.signer, pinned)
            if room is None:
                return Outcome.FULL, []
            gone = room
        self._kept[key] = kept
        self._counts[kept.signer] = self._counts.get(kept.signer, 0) + 1
        if pinned:
            self._pinned.add(key)
        return Outcome.NEW, gone

    def expire(self, now: float) -> list[Kept[R]]:
        """Drops and returns what has expired."""
        late = [key for key, kept in self._kept.items() if kept.record.expires < now - limits.CLOCK_TOLERANCE]
        return [self._forget(key) for key in late]

    def _make_room(self, signer: PeerId, pinned: bool) -> list[Kept[R]] | None:
        if self._counts.get(signer, 0) >= self._per_signer:
            return None
        if len(self._kept) < self._total:
            return []
        loose = [key for key in self._kept if key not in self._pinned] if pinned else []
        if not loose:
            return None
        return [self._forget(min(loose, key=lambda key: self._kept[key].record.expires))]

    def _forget(self, key: K) -> Kept[R]:
        kept = self._kept.pop(key)
        self._pinned.discard(key)
        self._counts[kept.signer] -= 1
        if not self._counts[kept.signer]:
            del self._counts[kept.signer]
        return kept
