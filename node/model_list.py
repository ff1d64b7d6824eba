"""The list of models as the HTTP surface shows it: the swarm's cards through the index, a page at a time."""

from __future__ import annotations

import asyncio

from node.gateway import ModelInfo
from node.model_index import Entry, ModelIndex, ModelQuery
from node.model_kinds import category_of, framework_of, tags_of
from node.report import Reporter
from node.swarm.interface import CardView, Swarm
from protocol.ids import ModelId, PeerId, model_text

Known = tuple[int, int]
"""A card's sequence number and the holders of its model."""


class ModelList:
    """Follows the cards: what changed since the last question is put into the index before the next one is answered."""

    def __init__(self, swarm: Swarm, reporter: Reporter, index: ModelIndex | None = None) -> None:
        self._swarm = swarm
        self._reporter = reporter
        self._index = index or ModelIndex()
        self._known: dict[str, Known] = {}
        self._cards: dict[str, CardView] = {}
        self._stale = True
        self._lock = asyncio.Lock()

    def changed(self, kind: str, whose: PeerId) -> None:
        """As the swarm tells: a card or a holding is new."""
        if kind in ("card", "holding"):
            self._stale = True

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        await self._follow()
        keys, total = await self._index.find(query)
        return [await self._reporter.info(self._cards[key]) for key in keys if key in self._cards], total

    def close(self) -> None:
        self._index.close()

    async def _follow(self) -> None:
        async with self._lock:
            if not self._stale:
                return
            self._stale = False
            cards = {_key(view): view for view in self._swarm.cards()}
            holders = {model: len(self._swarm.holdings(model)) for model in {ModelId(view.card.model) for view in cards.values()}}
            now = {key: (view.card.sequence, holders[ModelId(view.card.model)]) for key, view in cards.items()}
            fresh = [_entry(key, cards[key], now[key][1]) for key in now if self._known.get(key) != now[key]]
            await self._index.update(fresh, self._known.keys() - now.keys())
            self._known, self._cards = now, cards


def _key(view: CardView) -> str:
    return f"{view.publisher} {view.card.name} {view.card.version}"


def _entry(key: str, view: CardView, holders: int) -> Entry:
    card, model = view.card, model_text(ModelId(view.card.model))
    tags = tags_of(card.summary)
    return Entry(
        key=key,
        model=model,
        name=card.full_name(),
        words=" ".join([card.full_name(), card.description or "", card.license or "", *tags, model]),
        category=category_of(card.summary),
        framework=framework_of(card.summary),
        parameters=card.parameters,
        size=card.size,
        created=float(card.created),
        popularity=holders,
    )
