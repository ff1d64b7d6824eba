"""`Readers` records: which private models there are, and wraps for those who may read them. Pure.

One a publisher and model. Nothing of them can be told from outside but that a model is private and whose it is.
"""

from __future__ import annotations

from node.swarm.book import Kept, Outcome, RecordBook
from protocol.ids import ModelId, PeerId
from protocol.records import Readers

MAX_PRIVATE = 4_096
MAX_PRIVATE_PER_PUBLISHER = 256

Key = tuple[PeerId, ModelId]


class ReadersBook:
    def __init__(self, total: int = MAX_PRIVATE, per_publisher: int = MAX_PRIVATE_PER_PUBLISHER) -> None:
        self._book: RecordBook[Key, Readers] = RecordBook(total, per_publisher)

    def offer(self, kept: Kept[Readers], pinned: bool = False) -> tuple[Outcome, list[Kept[Readers]]]:
        return self._book.offer((kept.signer, ModelId(kept.record.model)), kept, pinned)

    def get(self, publisher: PeerId, model: ModelId) -> Kept[Readers] | None:
        return self._book.get((publisher, model))

    def all(self) -> list[Kept[Readers]]:
        """Also those taken back, which are kept and passed on as long."""
        return list(self._book)

    def expire(self, now: float) -> list[Kept[Readers]]:
        return self._book.expire(now)
