"""The index of cards: filters, order, words; nothing of a search is an operator."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.model_index import Entry, ModelIndex, ModelQuery, match_of
from node.model_kinds import category_of, framework_of
from protocol.manifest import Summary


def entry(number: int, **fields: object) -> Entry:
    given = {
        "key": f"peer m{number} 1",
        "publisher": "peer",
        "sequence": 1,
        "model": f"mfm1{number}",
        "name": f"ann/m{number:06d}@1",
        "words": f"ann/m{number:06d}@1 a model of kind{number % 7} llama",
        "category": ("text-generation", "feature-extraction")[number % 2],
        "framework": ("transformers", "gguf")[number % 3 == 0],
        "parameters": number * 1_000,
        "size": number * 7 % 1_000,
        "created": float(number),
        "popularity": number * 13 % 100,
    }
    return Entry(**{**given, **fields})  # type: ignore[arg-type]


@pytest.fixture
async def index() -> ModelIndex:
    made = ModelIndex()
    await made.update([entry(number) for number in range(100)])
    return made


async def numbers(index: ModelIndex, **query: object) -> list[int]:
    keys, _ = await index.find(ModelQuery(**{"limit": 100, **query}))  # type: ignore[arg-type]
    return [int(key.split()[1][1:]) for key in keys]


async def test_filters_and_orders_are_those_of_a_plain_list(index: ModelIndex) -> None:
    assert await numbers(index) == list(range(100))
    assert await numbers(index, order="desc", limit=3) == [99, 98, 97]
    assert await numbers(index, sort="created_at", limit=2) == [99, 98]
    popular = await numbers(index, sort="popularity")
    assert [number * 13 % 100 for number in popular] == sorted(range(100), reverse=True)
    large = await numbers(index, min_parameters=90_000, max_parameters=95_000, category="text-generation")
    assert large == [90, 92, 94]
    assert await numbers(index, framework="gguf", limit=3, offset=1) == [3, 6, 9]
    _, total = await index.find(ModelQuery(search="kind3", category="text-generation", limit=1))
    assert total == sum(number % 7 == 3 and number % 2 == 0 for number in range(100))


async def test_words_are_found_by_their_beginning_and_together(index: ModelIndex) -> None:
    assert await numbers(index, search="kin LLAMA m00004") == list(range(40, 50))
    assert await numbers(index, search="nothing") == []
    await index.update([entry(4, words="something else")], ["peer m5 1"])
    assert await numbers(index, search="something") == [4]
    assert await numbers(index, search="m000005") == []
    assert (await index.find(ModelQuery(limit=1)))[1] == 99


@given(st.text(max_size=60))
def test_no_search_is_a_query_of_its_own(text: str) -> None:
    match = match_of(text)
    assert match is None or match.replace('"', "").replace("*", "").replace(" ", "").replace("_", "a").isalnum()


@pytest.mark.parametrize("search", ['" OR 1', "NEAR(a b)", "a AND NOT b", "words:x", "*", "^a", "'; drop table models; --", "-a", "\x00"])
async def test_hostile_searches_find_nothing_and_break_nothing(index: ModelIndex, search: str) -> None:
    keys, _ = await index.find(ModelQuery(search=search))
    assert len(keys) <= 20
    assert len(await numbers(index)) == 100


async def test_a_hundred_thousand_are_listed_within_three_times_the_bar() -> None:
    index, rng = ModelIndex(), random.Random(1)
    await index.update([entry(number) for number in range(100_000)])
    queries = [
        ModelQuery(search="llama", category="text-generation", sort="popularity", offset=2_000),
        ModelQuery(search=f"kind{rng.randrange(7)}", sort="created_at"),
        ModelQuery(category="feature-extraction", framework="gguf", sort="size", order="asc"),
        ModelQuery(min_parameters=1_000_000, sort="name", offset=500),
    ]
    for query in queries:
        await index.find(query)
    took = []
    for _ in range(5):
        for query in queries:
            began = time.perf_counter()
            await index.find(query)
            took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 0.060


def test_kinds_are_read_from_the_configuration() -> None:
    assert category_of(Summary(model_type="llama", architecture="LlamaForCausalLM")) == "text-generation"
    assert category_of(Summary(model_type="bert", architecture="BertModel")) == "feature-extraction"
    assert category_of(Summary(model_type="x")) is None
    assert framework_of(Summary(model_type="llama", dtype="Q8_0")) == "gguf"
    assert framework_of(Summary(model_type="x")) is None
