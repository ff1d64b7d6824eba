"""Which peer says it holds which shards. Pure; indexed by model and by encoding."""

from __future__ import annotations

from collections.abc import Callable

from node.swarm.book import Kept, Outcome, RecordBook
from node.swarm.interface import HoldingView
from protocol import limits
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.records import Holding

MAX_HOLDINGS = 16_384
MAX_MODELS_PER_PEER = 1_024
MAX_HOLDING = 512 * limits.KIB
"""Bytes of one Holding's envelope, so that it travels in a control frame."""

Key = tuple[PeerId, ModelId]


def view_of(kept: Kept[Holding]) -> HoldingView:
    record = kept.record
    return HoldingView(
        kept.signer, ModelId(record.model), list(record.held), list(record.full), record.repairs or (), tuple(record.serves or ())
    )


def says_something(record: Holding) -> bool:
    """Not withdrawn: the signer holds shards or groups of the model, or serves layers of it."""
    return bool(record.held or record.full or record.serves)


class HoldingBook:
    def __init__(self, total: int = MAX_HOLDINGS, per_peer: int = MAX_MODELS_PER_PEER) -> None:
        self._book: RecordBook[Key, Holding] = RecordBook(total, per_peer)
        self._models: dict[ModelId, set[PeerId]] = {}
        self._encodings: dict[EncodingId, set[Key]] = {}

    def __len__(self) -> int:
        return len(self._book)

    def offer(self, kept: Kept[Holding], pinned: bool = False) -> tuple[Outcome, list[Kept[Holding]]]:
        outcome, gone = self._book.offer((kept.signer, ModelId(kept.record.model)), kept, pinned)
        for old in gone:
            self._unindex(old)
        if outcome is Outcome.NEW:
            self._index(kept)
        return outcome, gone

    def get(self, peer: PeerId, model: ModelId) -> Kept[Holding] | None:
        return self._book.get((peer, model))

    def all(self) -> list[Kept[Holding]]:
        return list(self._book)

    def of(self, peer: PeerId) -> list[Kept[Holding]]:
        """One peer's, the withdrawn ones too."""
        return self._book.of(peer)

    def of_model(self, model: ModelId) -> list[Kept[Holding]]:
        """Holdings that hold something; a withdrawn one is kept for its sequence number but not shown."""
        return [kept for peer in sorted(self._models.get(model, ())) if (kept := self._book.get((peer, model)))]

    def holders(self, encoding: EncodingId, usable: Callable[[PeerId], bool]) -> dict[int, list[PeerId]]:
        """shard number -> the usable peers that announce it, each once."""
        found: dict[int, set[PeerId]] = {}
        for peer, model in self._encodings.get(encoding, ()):
            kept = self._book.get((peer, model))
            if kept is None or not usable(peer):
                continue
            for held in kept.record.held:
                if held.encoding == encoding:
                    for shard in held.shards:
                        found.setdefault(shard, set()).add(peer)
        return {shard: sorted(found[shard]) for shard in sorted(found)}

    def expire(self, now: float) -> list[Kept[Holding]]:
        gone = self._book.expire(now)
        for kept in gone:
            self._unindex(kept)
        return gone

    def _index(self, kept: Kept[Holding]) -> None:
        model = ModelId(kept.record.model)
        if says_something(kept.record):
            self._models.setdefault(model, set()).add(kept.signer)
        for held in kept.record.held:
            self._encodings.setdefault(EncodingId(held.encoding), set()).add((kept.signer, model))

    def _unindex(self, kept: Kept[Holding]) -> None:
        model = ModelId(kept.record.model)
        peers = self._models.get(model, set())
        peers.discard(kept.signer)
        if not peers:
            self._models.pop(model, None)
        for held in kept.record.held:
            encoding = EncodingId(held.encoding)
            keys = self._encodings.get(encoding, set())
            keys.discard((kept.signer, model))
            if not keys:
                self._encodings.pop(encoding, None)
