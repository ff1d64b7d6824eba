"""Who is in the swarm, by their own signed word. Pure.

A NodeRecord is passed on only after a handshake with its PeerID (`met`): else one lie about an address would make the
whole swarm dial it.
"""

from __future__ import annotations

from node.swarm.book import Kept, Outcome, RecordBook
from protocol.ids import PeerId
from protocol.records import NodeRecord

MAX_NODES = 4_096
MAX_MET = 4 * MAX_NODES


class PeerBook:
    def __init__(self, total: int = MAX_NODES) -> None:
        self._book: RecordBook[PeerId, NodeRecord] = RecordBook(total, 1)
        self._met: dict[PeerId, None] = {}

    def __len__(self) -> int:
        return len(self._book)

    def offer(self, kept: Kept[NodeRecord], pinned: bool = False) -> tuple[Outcome, list[Kept[NodeRecord]]]:
        return self._book.offer(kept.signer, kept, pinned)

    def get(self, peer: PeerId) -> Kept[NodeRecord] | None:
        return self._book.get(peer)

    def all(self) -> list[Kept[NodeRecord]]:
        return list(self._book)

    def addresses(self, peer: PeerId) -> list[str]:
        kept = self._book.get(peer)
        return list(kept.record.addresses) if kept else []

    def meet(self, peer: PeerId) -> bool:
        """Notes a handshake; True the first time. The oldest is forgotten when the list is full."""
        first = peer not in self._met
        self._met.pop(peer, None)
        self._met[peer] = None
        while len(self._met) > MAX_MET:
            self._met.pop(next(iter(self._met)))
        return first

    def met(self, peer: PeerId) -> bool:
        return peer in self._met

    def expire(self, now: float) -> list[Kept[NodeRecord]]:
        return self._book.expire(now)
