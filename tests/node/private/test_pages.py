"""Private models among public ones: each page is what one sorted list of both would have there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway import ModelInfo
from node.model_index import ModelQuery
from node.private.gateway import PrivateGateway
from node.private.pages import downwards, key_of, page_of, slice_of
from tests.support.fake_gateway import MODEL

SORTS = ("relevance", "name", "popularity", "size", "created_at")


def model(number: int, size: int, private: bool = False) -> ModelInfo:
    name = f"ann/{'p' if private else 'm'}{number:03d}@1"
    return replace(MODEL, name=name, size_bytes=size, popularity=size % 7, created_at=float(size % 5), private=private)


MODELS = st.lists(st.integers(0, 30), max_size=25)


@given(MODELS, MODELS, st.sampled_from(SORTS), st.sampled_from([None, "asc", "desc"]), st.integers(1, 10))
def test_the_pages_together_are_the_sorted_list(private: list[int], public: list[int], sort: str, order: str | None, limit: int) -> None:
    query = ModelQuery(sort=sort, order=order, limit=limit)

    def in_order(models: list[ModelInfo]) -> list[ModelInfo]:
        return sorted(models, key=lambda one: key_of(one, query), reverse=downwards(query))

    mine = [model(number, size, True) for number, size in enumerate(private)]
    others = in_order([model(number, size) for number, size in enumerate(public)])
    found: list[ModelInfo] = []
    for offset in range(0, len(mine) + len(others) + limit, limit):
        page = replace(query, offset=offset)
        wanted = slice_of(page, len(mine))
        found += page_of(mine, others[wanted.offset : wanted.offset + wanted.limit], page)
    assert found == in_order([*mine, *others])


class Inner:
    """Public models, ranked by a search as they stand."""

    def __init__(self, listed: list[ModelInfo]) -> None:
        self.listed = listed

    async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
        return self.listed[query.offset : query.offset + query.limit], len(self.listed)


class Mine:
    def __init__(self, listed: list[ModelInfo]) -> None:
        self.listed = listed

    async def visible(self, caller: object) -> list[ModelInfo]:
        return self.listed

    async def info(self, opened: ModelInfo) -> ModelInfo:
        return opened


@pytest.mark.parametrize("order", [None, "asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_where_a_search_ranks_the_private_ones_stand_at_the_better_end(
    monkeypatch: pytest.MonkeyPatch, order: str | None, limit: int
) -> None:
    monkeypatch.setattr("node.private.gateway.matches", lambda opened, query: True)
    mine, others = [model(number, 1, True) for number in (1, 0, 2)], [model(number, 1) for number in (5, 3, 9, 1)]
    inner: Any = Inner(others)
    private: Any = Mine(mine)
    gateway = PrivateGateway(inner, private)

    async def pages() -> list[str | None]:
        found: list[str | None] = []
        for offset in range(0, 10, limit):
            page, total = await gateway.page(ModelQuery(search="m", order=order, limit=limit, offset=offset))
            assert total == 7
            assert len(page) <= limit
            found += [one.name for one in page]
        return found

    ranked, own = [one.name for one in others], sorted(str(one.name) for one in mine)
    assert asyncio.run(pages()) == ([*ranked, *own] if order == "asc" else [*own, *ranked])
