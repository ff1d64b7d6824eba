"""The list follows the swarm: what changed is there at the next question, and each parameter of a query reaches the index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from node.model_index import ModelQuery
from node.model_list import ModelList
from node.report import Reporter
from node.swarm.interface import CardView, HoldingView
from protocol.ids import ModelId, PeerId
from protocol.manifest import Summary
from protocol.records import Card

ANN, BOB = PeerId("12D3KooWAnn"), PeerId("12D3KooWBob")


def made(name: str, number: int, **more: Any) -> Card:
    given = {"sequence": 1, "expires": 9, "label": "ann", "version": "1", "model": b"%032d" % number, "size": number, "parameters": number,
             "created": number, "summary": Summary(model_type="llama", architecture="LlamaForCausalLM")}  # fmt: skip
    return Card(**{**given, "name": name, **more})


@dataclass
class Cards:
    shown: dict[tuple[PeerId, str, str], Card] = field(default_factory=dict)
    held: dict[ModelId, set[PeerId]] = field(default_factory=dict)
    walked: list[PeerId] = field(default_factory=list)

    def put(self, publisher: PeerId, card: Card) -> None:
        self.shown[publisher, card.name, card.version] = card

    def publishers(self) -> list[PeerId]:
        return list(dict.fromkeys(publisher for publisher, _, _ in self.shown))

    def cards_of(self, publisher: PeerId) -> list[CardView]:
        self.walked.append(publisher)
        return [CardView(whose, card) for (whose, _, _), card in self.shown.items() if whose == publisher]

    def card(self, publisher: PeerId, name: str, version: str) -> CardView | None:
        found = self.shown.get((publisher, name, version))
        return None if found is None else CardView(publisher, found)

    def holdings(self, model: ModelId) -> list[HoldingView]:
        return [HoldingView(peer, model, [], [0]) for peer in sorted(self.held.get(model, ()))]

    def models_of(self, peer: PeerId) -> list[ModelId]:
        return [model for model, peers in self.held.items() if peer in peers]


class Nowhere:
    async def located_here(self, model: ModelId) -> None:
        return None


@pytest.fixture
async def cards() -> Cards:
    return Cards()


@pytest.fixture
async def listed(cards: Cards) -> AsyncIterator[ModelList]:
    nothing: Any = None
    swarm: Any = cards
    located: Any = Nowhere()
    found = ModelList(swarm, Reporter(ANN, "0", swarm, nothing, located, nothing, nothing))
    yield found
    found.close()


async def names(listed: ModelList, **query: Any) -> list[str]:
    found, total = await listed.page(ModelQuery(**query))
    assert total >= len(found)
    return [str(info.name).removeprefix("ann/").removesuffix("@1") for info in found]


async def test_what_changed_is_there_at_the_next_question(listed: ModelList, cards: Cards) -> None:
    cards.put(ANN, made("one", 1))
    cards.put(BOB, made("two", 2))
    assert await names(listed) == ["one", "two"]
    cards.walked.clear()
    cards.put(BOB, made("two", 3, sequence=2, description="of another kind"))
    cards.put(BOB, made("three", 4))
    listed.changed("card", BOB)
    assert await names(listed) == ["one", "three", "two"]
    assert await names(listed, search="another") == ["two"]
    assert cards.walked == [BOB], "nobody else's cards were looked at"
    del cards.shown[ANN, "one", "1"]
    listed.changed("card", ANN)
    assert await names(listed) == ["three", "two"]


async def test_holders_are_counted_as_they_come_and_go(listed: ModelList, cards: Cards) -> None:
    for number, name in enumerate(("one", "two", "three"), 1):
        cards.put(ANN, made(name, number))
    assert await names(listed, sort="popularity") == ["two", "three", "one"]
    cards.held = {ModelId(b"%032d" % 3): {BOB, ANN}, ModelId(b"%032d" % 1): {BOB}}
    listed.changed("holding", BOB)
    listed.changed("holding", ANN)
    assert await names(listed, sort="popularity") == ["three", "one", "two"]
    cards.held = {ModelId(b"%032d" % 3): {ANN}, ModelId(b"%032d" % 2): {ANN, BOB}}
    listed.changed("routable", BOB)
    listed.changed("holding", ANN)
    assert await names(listed, sort="popularity") == ["two", "three", "one"]
    cards.held = {}
    listed.changed("holding", ANN)
    listed.changed("holding", BOB)
    assert await names(listed, sort="popularity", order="asc") == ["one", "three", "two"]


async def test_a_card_of_absurd_numbers_is_listed_like_any(listed: ModelList, cards: Cards) -> None:
    cards.put(ANN, made("huge", 1, size=2**64 - 1, parameters=2**64 - 1, created=2**64 - 1, sequence=2**64 - 1))
    cards.put(ANN, made("small", 2))
    assert await names(listed, sort="size") == ["huge", "small"]
    assert await names(listed, max_parameters=5) == ["small"]


async def test_who_doesnt_wait_leaves_it_to_the_next(listed: ModelList, cards: Cards) -> None:
    for number in range(2_000):
        cards.put(ANN, made(f"m{number}", number))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await listed.page(ModelQuery())
    _, total = await listed.page(ModelQuery())
    assert total == 2_000
    assert cards.walked == [ANN], "what was begun went on"


async def test_it_follows_unasked() -> None:
    cards, nothing, located = Cards(), None, Nowhere()
    listed = ModelList(cards, Reporter(ANN, "0", cards, nothing, located, nothing, nothing))  # type: ignore[arg-type]
    cards.put(ANN, made("one", 1))
    listed.changed("card", ANN)
    async with asyncio.timeout(10):
        while not cards.walked:  # noqa: ASYNC110 - it looks on
            await asyncio.sleep(0.05)
    listed.close()
