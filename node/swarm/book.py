"""A bounded book of signed records: one per subject, the higher sequence number wins.

Two records of one subject with the same sequence number (a signer at fault, or its clock) are told apart by
their bytes: the greater mark wins, so that every node ends with the same one whatever the order of arrival.
What a book may take is bounded in records and in bytes of their envelopes, for all and for each signer. In a full book a newcomer takes the
place of a record of whoever has most, if that one has at least two more than the newcomer's signer: no one fills a book that others need,
and those who have as little as he keep theirs. A pinned signer's record takes the place of any unpinned one: a flood of strangers' records
can't push out the owner's swarm.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from node.swarm.shares import Shares
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


@dataclass(frozen=True, slots=True)
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


_LOOKED_AT = 64
"""Records compared for who goes first: a full book must not cost more than a look."""
_NEVER = float("inf")


class RecordBook(Generic[K, R]):
    """At most `total` records, `per_signer` of one signer; where given, `most_bytes` in all and `signer_bytes` of one."""

    def __init__(self, total: int, per_signer: int, most_bytes: int | None = None, signer_bytes: int | None = None) -> None:
        self._total, self._per_signer = total, per_signer
        self._most_bytes, self._signer_bytes = most_bytes, signer_bytes
        self._kept: dict[K, Kept[R]] = {}
        self._pinned: set[K] = set()
        self._shares = Shares[K]()
        self._soonest = _NEVER
        """No record expires before."""

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept[R]]:
        return iter(list(self._kept.values()))

    @property
    def bytes(self) -> int:
        """Of all envelopes."""
        return self._shares.bytes

    def get(self, key: K) -> Kept[R] | None:
        return self._kept.get(key)

    def of(self, signer: PeerId) -> list[Kept[R]]:
        return [self._kept[key] for key in self._shares.of(signer)]

    def signers(self) -> list[PeerId]:
        return self._shares.signers()

    def offer(self, key: K, kept: Kept[R], pinned: bool = False) -> tuple[Outcome, list[Kept[R]]]:
        """Keeps a record if it is news; also returns the records it took the place of."""
        old = self._kept.get(key)
        if old is not None:
            if kept.mark == old.mark:
                return Outcome.KNOWN, []
            if (kept.record.sequence, kept.mark) < (old.record.sequence, old.mark):
                return Outcome.OLDER, []
        gone = self._make_room(key, kept, pinned)
        if gone is None:
            return Outcome.FULL, []
        if old is not None:
            gone.append(self._forget(key))
        self._kept[key] = kept
        self._shares.add(kept.signer, key, len(kept.envelope))
        self._soonest = min(self._soonest, kept.record.expires)
        if pinned:
            self._pinned.add(key)
        return Outcome.NEW, gone

    def expire(self, now: float) -> list[Kept[R]]:
        """Drops and returns what has expired; looks through all only where something may have."""
        before = now - limits.CLOCK_TOLERANCE
        if self._soonest >= before:
            return []
        gone = [self._forget(key) for key in [key for key, kept in self._kept.items() if kept.record.expires < before]]
        self._soonest = min((kept.record.expires for kept in self._kept.values()), default=_NEVER)
        return gone

    def _make_room(self, key: K, kept: Kept[R], pinned: bool) -> list[Kept[R]] | None:
        """Drops and returns what has to go for it; None, and nothing dropped, where there is no room."""
        old = self._kept.get(key)
        more, one = len(kept.envelope) - (len(old.envelope) if old else 0), 0 if old else 1
        has = self._shares.share(kept.signer)
        if has.records + one > self._per_signer or (self._signer_bytes is not None and more > 0 and has.bytes + more > self._signer_bytes):
            return None
        going: list[K] = []
        freed = 0
        while len(self._kept) - len(going) + one > self._total or self._shares.bytes - freed + more > (self._most_bytes or _NEVER):
            worst = self._first_to_go(kept.signer, pinned, [key, *going])
            if worst is None:
                return None
            going.append(worst)
            freed += len(self._kept[worst].envelope)
        return [self._forget(one) for one in going]

    def _first_to_go(self, newcomer: PeerId, pinned: bool, spared: list[K]) -> K | None:
        """Of those with most, the unpinned record that expires soonest."""
        least = 1 if pinned else self._shares.share(newcomer).records + 2
        looked: list[K] = []
        for key in self._shares.greatest(least):
            if key not in self._pinned and key not in spared:
                looked.append(key)
                if len(looked) >= _LOOKED_AT:
                    break
        return min(looked, key=lambda key: self._kept[key].record.expires, default=None)

    def _forget(self, key: K) -> Kept[R]:
        kept = self._kept.pop(key)
        self._pinned.discard(key)
        self._shares.remove(kept.signer, key, len(kept.envelope))
        return kept
