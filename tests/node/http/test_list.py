"""Every parameter of GET /api/v1/models reaches the index: what comes is what a plain list, filtered and sorted, would give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from node.gateway import ModelInfo
from node.model_index import Entry, ModelIndex, ModelQuery
from tests.node.http.conftest import Site, Start
from tests.support.fake_gateway import MODEL, FakeGateway


def entry(number: int) -> Entry:
    return Entry(
        key=f"{number}",
        publisher="p",
        sequence=1,
        model=f"mfm1{number:04d}",
        name=f"ann/m{number * 37 % 60:04d}@1",
        words=f"ann/m{number * 37 % 60:04d}@1 colour{number % 3} {'fine ' * (number % 5)}",
        category=("text-generation", "feature-extraction")[number % 2],
        framework=("safetensors", "gguf")[number % 3 == 0],
        parameters=number * 1_000,
        size=number * 7 % 61,
        created=float(number * 11 % 59),
        popularity=number * 13 % 53,
    )


ENTRIES = [entry(number) for number in range(60)]


class Listed(FakeGateway):
    index: ModelIndex

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        keys, total = await self.index.find(query)
        shown = [ENTRIES[int(key)] for key in keys]
        return [replace(MODEL, model_id=one.model, name=one.name, size_bytes=one.size) for one in shown], total


@pytest.fixture
async def site(start: Start) -> AsyncIterator[Site]:
    gateway = Listed()
    gateway.index = ModelIndex()
    await gateway.index.update(ENTRIES)
    yield await start(gateway)
    gateway.index.close()


async def listed(site: Site, query: str) -> tuple[list[int], dict[str, Any]]:
    status, body = await site.get(f"/api/v1/models?{query}")
    assert status == 200, body
    return [int(model["id"][4:]) for model in body["data"]["models"]], body["data"]["pagination"]


def wanted(test: Any, key: Any, down: bool = False) -> list[int]:
    numbers = [number for number in range(60) if test(ENTRIES[number])]
    return sorted(numbers, key=lambda number: (key(ENTRIES[number]), ENTRIES[number].key), reverse=down)


def by_name(one: Entry) -> str:
    return one.name


@pytest.mark.parametrize(
    ("query", "test"),
    [
        ("category=feature-extraction", lambda one: one.category == "feature-extraction"),
        ("framework=gguf", lambda one: one.framework == "gguf"),
        ("min_parameters=30000", lambda one: one.parameters >= 30_000),
        ("max_parameters=7000", lambda one: one.parameters <= 7_000),
        ("search=colour2&sort=name", lambda one: "colour2" in one.words),
        ("search=colour1%20fine&sort=name", lambda one: "colour1" in one.words and "fine" in one.words),
        (
            "category=text-generation&framework=safetensors&min_parameters=8000&max_parameters=50000&search=colour&sort=name",
            lambda one: one.category == "text-generation" and one.framework == "safetensors" and 8_000 <= one.parameters <= 50_000,
        ),
    ],
)
async def test_filters(site: Site, query: str, test: Any) -> None:
    found, pages = await listed(site, f"{query}&limit=100")
    assert found == wanted(test, by_name)
    assert 0 < pages["total_models"] == len(found) < 60


@pytest.mark.parametrize(
    ("sort", "key", "down"),
    [("name", by_name, False), ("popularity", lambda one: one.popularity, True), ("size", lambda one: one.size, True),
     ("created_at", lambda one: one.created, True)],
)  # fmt: skip
async def test_sorts_in_the_order_one_expects_and_in_the_one_asked_for(site: Site, sort: str, key: Any, down: bool) -> None:
    every = lambda one: True  # noqa: E731
    assert (await listed(site, f"sort={sort}&limit=100"))[0] == wanted(every, key, down)
    assert (await listed(site, f"sort={sort}&order=asc&limit=100"))[0] == wanted(every, key)
    assert (await listed(site, f"sort={sort}&order=desc&limit=100"))[0] == wanted(every, key, True)


async def test_relevance_is_of_the_search(site: Site) -> None:
    best, _ = await listed(site, "search=fine&limit=3")
    assert all(ENTRIES[number].words.count("fine") == 4 for number in best)
    worst, _ = await listed(site, "search=fine&order=asc&limit=3")
    assert all(ENTRIES[number].words.count("fine") == 1 for number in worst)


async def test_pages(site: Site) -> None:
    every = wanted(lambda one: True, by_name)
    found, pages = await listed(site, "page=3&limit=7")
    assert found == every[14:21]
    assert (pages["current_page"], pages["total_pages"], pages["has_next"], pages["has_previous"]) == (3, 9, True, True)
    assert (await listed(site, "page=9&limit=7"))[0] == every[56:]
    assert (await listed(site, "page=10&limit=7"))[0] == []


@pytest.mark.parametrize("query", ["sort=colour", "order=up", "limit=0", "limit=101", "page=0", "min_parameters=-1", "max_parameters=x",
                                   "category=", "framework=" + "x" * 65, "search=" + "x" * 257])  # fmt: skip
async def test_what_isnt_any_is_refused_by_name(site: Site, query: str) -> None:
    status, body = await site.get(f"/api/v1/models?{query}")
    assert (status, body["error"]["details"]["param"]) == (400, query.partition("=")[0])
