"""The list of models as the HTTP surface shows it: the swarm's cards through the index, a page at a time.

A list may have a hundred thousand lines, and cards and holdings change all the time: only what a change touched is looked at again, its
publisher's cards and the models of which its peer says that it holds something.
"""

from __future__ import annotations

import asyncio

from node.gateway import ModelInfo
from node.model_index import Entry, ModelIndex, ModelQuery
from node.model_kinds import category_of, framework_of, tags_of
from node.report import Reporter
from node.swarm.interface import CardView, Swarm
from protocol.ids import ModelId, PeerId, model_text

_SOON = 2.0
_MOST = 2**63 - 1
"""The greatest number that SQLite has; a card may say more."""
_AT_ONCE = 500
"""Cards put into the index between two turns of the loop."""


class ModelList:
    """Follows the cards: what changed since the last question is put into the index before the next one is answered, and a moment after it
    changed in any case, so that after a large swarm was joined the first question doesn't wait for all of it."""

    def __init__(self, swarm: Swarm, reporter: Reporter, index: ModelIndex | None = None) -> None:
        self._swarm = swarm
        self._reporter = reporter
        self._index = index or ModelIndex()
        self._publishers: set[PeerId] | None = None
        """Those whose cards have to be looked at; None: everybody's, as at first."""
        self._holders: set[PeerId] = set()
        self._held: dict[PeerId, frozenset[ModelId]] = {}
        self._numbers: dict[PeerId, int] = {}
        """Publishers as the index knows them: a PeerID stands there eight times a line."""
        self._numbered: list[PeerId] = []
        self._lock = asyncio.Lock()
        self._following: set[asyncio.Task[None]] = set()
        self._soon: asyncio.TimerHandle | None = None

    def changed(self, kind: str, whose: PeerId) -> None:
        """As the swarm tells: a card or a holding is new or gone, a peer answers or does so no more."""
        if kind == "card" and self._publishers is not None:
            self._publishers.add(whose)
        elif kind in ("holding", "routable"):
            self._holders.add(whose)
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(_SOON, self._begin)

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        await asyncio.shield(self._begin())  # who doesn't wait for it leaves it to the next one
        keys, total = await self._index.find(query)
        views = [self._swarm.card(*self._parts(key)) for key in keys]
        return [await self._reporter.info(view) for view in views if view is not None], total

    def close(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
        for task in self._following:
            task.cancel()
        self._index.close()

    def _begin(self) -> asyncio.Task[None]:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        task = asyncio.get_running_loop().create_task(self._follow(), name="list of models")
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return task

    async def _follow(self) -> None:
        async with self._lock:
            publishers, self._publishers = self._publishers, set()
            holders, self._holders = self._holders, set()
            await self._follow_cards(self._swarm.publishers() if publishers is None else list(publishers))
            await self._follow_holders(list(holders))

    async def _follow_cards(self, publishers: list[PeerId]) -> None:
        batch: list[tuple[str, list[Entry]]] = []
        for publisher in publishers:
            number = self._number(publisher)
            batch.append((str(number), [self._entry(number, view) for view in self._swarm.cards_of(publisher)]))
            if sum(len(entries) for _, entries in batch) >= _AT_ONCE:
                await self._index.follow(batch)
                batch = []
        if batch:
            await self._index.follow(batch)

    async def _follow_holders(self, peers: list[PeerId]) -> None:
        """How many hold what these peers hold, or held when they were last looked at."""
        touched: set[ModelId] = set()
        for peer in peers:
            now = frozenset(self._swarm.models_of(peer))
            touched |= now | self._held.pop(peer, frozenset())
            if now:
                self._held[peer] = now
        models = list(touched)
        for at in range(0, len(models), _AT_ONCE):
            counted = [(model_text(model), len(self._swarm.holdings(model))) for model in models[at : at + _AT_ONCE]]
            await self._index.count_holders(counted)

    def _number(self, publisher: PeerId) -> int:
        if publisher not in self._numbers:
            self._numbers[publisher] = len(self._numbered)
            self._numbered.append(publisher)
        return self._numbers[publisher]

    def _parts(self, key: str) -> tuple[PeerId, str, str]:
        number, name, version = key.split(" ")
        return self._numbered[int(number)], name, version

    def _entry(self, number: int, view: CardView) -> Entry:
        card, model = view.card, model_text(ModelId(view.card.model))
        tags = tags_of(card.summary)
        return Entry(
            key=f"{number} {card.name} {card.version}",
            publisher=str(number),
            sequence=card.sequence & _MOST,
            model=model,
            name=card.full_name(),
            words=" ".join([card.full_name(), card.description or "", card.license or "", *tags, model]),
            category=category_of(card.summary),
            framework=framework_of(card.summary),
            parameters=min(card.parameters, _MOST),
            size=min(card.size, _MOST),
            created=float(card.created),
            popularity=len(self._swarm.holdings(ModelId(card.model))),
        )
