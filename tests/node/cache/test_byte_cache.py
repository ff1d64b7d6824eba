"""One conformance suite for the three policies, and what each is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.cache.byte_cache import LRU, ByteCache, Policy
from node.cache.predictor import KNOWN_MOST, Predictor
from node.cache.s3_fifo import S3Fifo
from protocol.errors import BadInput

LIMIT = 100
POLICIES: dict[str, Callable[[], Policy]] = {"lru": LRU, "s3_fifo": lambda: S3Fifo(LIMIT), "predictor": Predictor}
KEYS = st.integers(0, 12).map(lambda number: f"key {number}")
SIZES = {f"key {number}": 3 + 7 * number % 45 for number in range(13)}
STEPS = st.lists(st.tuples(st.sampled_from(["use", "add", "drop", "pin", "unpin", "resize"]), KEYS, st.integers(0, 7_200)), max_size=80)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_bytes_and_pins_hold_whatever_happens(policy: str, steps: list[tuple[str, str, int]]) -> None:
    cache, now = ByteCache(LIMIT, POLICIES[policy]()), 1e9
    pins: Counter[str] = Counter()
    for verb, key, passed in steps:
        now += passed
        before, gone = dict(cache.held()), []
        if verb == "use":
            assert cache.ask(key, SIZES[key], now) == (key in before)
            gone = cache.add(key, SIZES[key], now)
        elif verb == "add":
            gone = cache.add(key, SIZES[key], now)
        elif verb == "drop":
            cache.drop(key)
            assert key not in cache
        elif verb == "pin":
            cache.pin(key)
            pins[key] += 1
        elif verb == "unpin" and pins[key]:
            cache.unpin(key)
            pins[key] -= 1
            gone = cache.resize(LIMIT, now)  # what pins alone kept above the limit goes at the next look
        elif verb == "resize":
            gone = cache.resize(40 + passed % 60, now)
            now += 1
            gone += cache.resize(LIMIT, now)
        assert not {name for name in gone if pins[name]} - {key}
        assert not set(gone) & set(cache)
        assert set(before) - set(gone) - {key} <= set(cache)
        assert cache.used == sum(cache.held().values())
        assert cache.used <= LIMIT or all(pins[name] for name in cache)
    assert cache.hits + cache.misses == sum(verb == "use" for verb, _, _ in steps)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_is_larger_than_the_cache_isnt_held(policy: str) -> None:
    cache = ByteCache(LIMIT, POLICIES[policy]())
    cache.add("small", 10, 0.0)
    assert cache.add("large", LIMIT + 1, 1.0) == ["large"]
    assert set(cache) == {"small"}
    with pytest.raises(BadInput):
        cache.add("negative", -1, 2.0)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_where_all_is_pinned_the_newest_isnt_held(policy: str) -> None:
    cache = ByteCache(LIMIT, POLICIES[policy]())
    for key in ("a", "b"):
        cache.pin(key)
        cache.add(key, 50, 0.0)
    assert cache.add("c", 10, 1.0) == ["c"]
    cache.pin("a")
    cache.unpin("a")
    assert cache.add("c", 10, 2.0) == ["c"]
    cache.unpin("a")
    cache.ask("b", 50, 3.0)
    assert set(cache.add("c", 60, 4.0)) <= {"a", "c"}


def test_lru_lets_go_what_wasnt_asked_for_longest() -> None:
    cache = ByteCache(30, LRU())
    for at, key in enumerate("abcad"):
        cache.ask(key, 10, at)
        cache.add(key, 10, at)
    assert set(cache) == {"c", "a", "d"}


def test_s3_fifo_keeps_what_is_asked_for_twice_through_a_scan() -> None:
    cache = ByteCache(100, S3Fifo(100))
    for at in range(3):
        cache.ask("hot", 10, at)
        cache.add("hot", 10, at)
    for number in range(50):
        cache.ask(f"once {number}", 10, 10 + number)
        cache.add(f"once {number}", 10, 10 + number)
    assert "hot" in cache


def test_the_predictor_forgets_what_is_least_expected() -> None:
    predictor = Predictor()
    for at in range(5):
        predictor.asked("often", 10, 1e9 + at)
    for number in range(2 * KNOWN_MOST):
        predictor.asked(f"once {number}", 10, 1e9 + 10 + number)
    assert len(predictor._seen) <= KNOWN_MOST
    assert predictor.expected("often", 1e9 + 1e4) > 0
