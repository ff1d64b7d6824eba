"""Which tokens the nodes that issued them have revoked, by their own signed word. Pure.

One record a home, with all it has revoked that could still be alive: the newest stands for all before it, so that nothing is
lost when a push is. Only the home's word counts about its own tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from node.swarm.book import Kept, Outcome, RecordBook
from protocol import limits
from protocol.ids import PeerId
from protocol.records import Revocations

MAX_HOMES = 4_096
MAX_REVOCATIONS_RECORD = 128 * limits.KIB
"""Bytes of one envelope: 4,096 ids of 16 bytes with their times."""


class RevocationBook:
    def __init__(self, total: int = MAX_HOMES) -> None:
        self._book: RecordBook[PeerId, Revocations] = RecordBook(total, 1)
        self._ids: dict[PeerId, frozenset[bytes]] = {}

    def offer(self, kept: Kept[Revocations], pinned: bool = False) -> tuple[Outcome, list[Kept[Revocations]]]:
        outcome, gone = self._book.offer(kept.signer, kept, pinned)
        for old in gone:
            self._ids.pop(old.signer, None)
        if outcome is Outcome.NEW:
            self._ids[kept.signer] = frozenset(entry.id for entry in kept.record.revoked)
        return outcome, gone

    def get(self, home: PeerId) -> Kept[Revocations] | None:
        return self._book.get(home)

    def revoked(self, home: PeerId, ids: Iterable[bytes], issued: int) -> bool:
        """Whether the home has revoked any of these, or all it issued before a time after `issued`."""
        kept = self._book.get(home)
        if kept is None:
            return False
        known = self._ids.get(home, frozenset())
        return any(one in known for one in ids) or (kept.record.before is not None and issued < kept.record.before)

    def expire(self, now: float) -> list[Kept[Revocations]]:
        gone = self._book.expire(now)
        for kept in gone:
            self._ids.pop(kept.signer, None)
        return gone
