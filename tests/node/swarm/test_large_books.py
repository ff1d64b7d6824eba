"""Books at their bounds: nobody fills one that others need, and two that are far apart come together in a few questions."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.swarm import exchange
from node.swarm.archive import BUCKETS, Archive, bucket_of
from node.swarm.book import Kept, Outcome, RecordBook, mark_of
from node.swarm.catalog import MAX_BYTES_PER_PUBLISHER, MAX_CARD_BYTES, MAX_CARDS, MAX_CARDS_PER_PUBLISHER, Catalog
from protocol import limits
from protocol.ids import ModelId, PeerId
from protocol.manifest import Summary
from protocol.records import Card, seal_record
from tests.node.swarm.nodes import NOW, Node, Nodes, card, key_of, model_of


def kept(signer: str, name: str = "a", expires: int = NOW + 100, size: int = 100, sequence: int = 1) -> Kept[Card]:
    envelope = f"{signer} {name} {sequence} ".encode().ljust(size, b".")
    return Kept(PeerId(signer), card(name=name, sequence=sequence, expires=expires), envelope, mark_of(envelope))


def offer(book: RecordBook[tuple[str, str], Card], one: Kept[Card], pinned: bool = False) -> Outcome:
    return book.offer((one.signer, one.record.name), one, pinned)[0]


def counts(book: RecordBook[tuple[str, str], Card]) -> Counter[str]:
    return Counter(one.signer for one in book)


def test_one_signer_makes_room_for_those_who_have_less() -> None:
    book: RecordBook[tuple[str, str], Card] = RecordBook(6, 6)
    for number in range(6):
        assert offer(book, kept("greedy", f"g{number}", NOW + 100 + number)) is Outcome.NEW
    assert offer(book, kept("greedy", "more")) is Outcome.FULL
    for signer in ("b", "c", "d"):
        assert offer(book, kept(signer)) is Outcome.NEW
    assert counts(book) == {"greedy": 3, "b": 1, "c": 1, "d": 1}
    assert {one.record.name for one in book.of(PeerId("greedy"))} == {"g3", "g4", "g5"}, "what expires first went first"
    assert offer(book, kept("b", "b2")) is Outcome.NEW, "three against two, and then as many"
    assert offer(book, kept("b", "b3")) is Outcome.FULL
    for signer in ("e", "f"):
        assert offer(book, kept(signer)) is Outcome.NEW
    assert set(counts(book).values()) == {1}
    assert offer(book, kept("h")) is Outcome.FULL, "nobody has more than a newcomer would have"


def test_bytes_are_bounded_for_each_and_for_all() -> None:
    book: RecordBook[tuple[str, str], Card] = RecordBook(100, 100, 1_000, 500)
    assert offer(book, kept("a", "one", size=400)) is Outcome.NEW
    assert offer(book, kept("a", "two", size=200)) is Outcome.FULL
    assert offer(book, kept("a", "one", size=600, sequence=2)) is Outcome.FULL
    assert [one.record.sequence for one in book] == [1], "what is too large doesn't take the older one with it"
    assert offer(book, kept("a", "one", size=300, sequence=3)) is Outcome.NEW
    assert offer(book, kept("b", "one", size=450)) is Outcome.NEW
    assert offer(book, kept("c", "one", size=400)) is Outcome.FULL
    assert offer(book, kept("c", "one", size=400), pinned=True) is Outcome.NEW
    assert book.bytes <= 1_000
    assert offer(book, kept("d", "one", size=700), pinned=True) is Outcome.FULL


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9), st.integers(60, 200), st.booleans()), max_size=120))
def test_a_book_keeps_its_bounds_and_its_own_accounts(steps: list[tuple[str, int, int, bool]]) -> None:
    book: RecordBook[tuple[str, str], Card] = RecordBook(12, 6, 1_600, 800)
    here: set[bytes] = set()
    for number, (signer, name, size, pinned) in enumerate(steps):
        one = kept(signer, f"n{name}", NOW + number % 7, size, sequence=number)
        outcome, gone = book.offer((one.signer, one.record.name), one, pinned)
        here -= {old.mark for old in gone}
        if outcome is Outcome.NEW:
            here.add(one.mark)
        assert {old.mark for old in book} == here
        assert book.bytes == sum(len(old.envelope) for old in book) <= 1_600
        assert len(book) <= 12
        for who, records in counts(book).items():
            assert records == len(book.of(PeerId(who))) <= 6
            assert sum(len(old.envelope) for old in book.of(PeerId(who))) <= 800
        assert set(book.signers()) == set(counts(book))
    gone_late = book.expire(NOW + 3 + limits.CLOCK_TOLERANCE)
    assert all(old.record.expires < NOW + 3 for old in gone_late)
    assert all(old.record.expires >= NOW + 3 for old in book)
    assert book.expire(NOW + 3 + limits.CLOCK_TOLERANCE) == []


def test_the_list_has_room_for_a_hundred_thousand_and_no_publisher_for_all() -> None:
    assert MAX_CARDS >= 100_000
    assert MAX_CARD_BYTES // MAX_CARDS > 600, "bytes of a card with a description of a sentence"
    assert MAX_CARDS_PER_PUBLISHER * 100 < MAX_CARDS
    assert MAX_BYTES_PER_PUBLISHER * 100 < MAX_CARD_BYTES


def test_a_flood_of_one_publishers_cards_leaves_others_theirs() -> None:
    catalog = Catalog(total=400, per_publisher=300)
    for number in range(600):
        catalog.offer(kept("flood", f"f{number}"))
    for number in range(200):
        assert catalog.offer(kept(f"p{number}", "m"))[0] is Outcome.NEW
    assert len(catalog.of(PeerId("flood"))) == 200
    assert len(catalog) == 400
    assert catalog.models() == 1
    assert len(catalog.naming(model_of(1))) == 400


def _filled(seeds: range, each: int) -> Archive:
    archive = Archive()
    for seed in seeds:
        for number in range(each):
            archive.take(seal_record(key_of(seed), card(name=f"m{number}", model=seed)), NOW, lambda _peer: False)
    return archive


def test_whole_buckets_are_listed_while_they_fit() -> None:
    archive = _filled(range(1, 5), 50)
    order = list(range(BUCKETS))
    random.Random(1).shuffle(order)
    marks, whole = archive.listed(order, lambda _kept: True, 60)
    assert 0 < len(marks) <= 60
    assert {bucket_of(mark) for mark in marks} <= set(whole)
    every, buckets = archive.listed(order, lambda _kept: True, 1_000)
    assert (set(every), set(buckets)) == (archive.all_marks(), set(range(BUCKETS)))
    few, none = archive.listed([bucket_of(every[0])], lambda _kept: True, 1)
    assert (len(few), none) == (1, []) or len(few) == 1


async def test_what_was_refused_for_want_of_room_isnt_asked_for_again() -> None:
    archive = Archive()
    archive.catalog = Catalog(total=1)
    first, second = (seal_record(key_of(seed), card(model=seed)) for seed in (1, 2))
    archive.take(first, NOW, lambda _peer: False)
    assert archive.lacks(mark_of(second))
    archive.take(second, NOW, lambda _peer: False)
    assert not archive.has(mark_of(second))
    assert not archive.lacks(mark_of(second))
    archive.expire(NOW + 3_600 + limits.CLOCK_TOLERANCE + 1)
    assert archive.lacks(mark_of(second))


def test_a_name_among_many_is_found_without_a_walk() -> None:
    catalog = Catalog()
    summary = Summary(model_type="llama")
    for number in range(20_000):
        record = Card(sequence=1, expires=NOW, label="ann", name=f"model-{number}", version="1", model=b"%032d" % number, size=1,
                      parameters=1, created=1, summary=summary)  # fmt: skip
        envelope = b"%d" % number
        catalog.offer(Kept(PeerId(f"p{number // 200}"), record, envelope, mark_of(envelope)))
    own = PeerId("p7")
    assert catalog.resolve("model-1401", own, lambda peer: peer == own) == ModelId(b"%032d" % 1401)
    assert catalog.resolve("ann/model-19999", own, lambda peer: False) == ModelId(b"%032d" % 19_999)
    with pytest.raises(Exception, match="model-77") as caught:
        catalog.resolve("ann/model-77x", own, lambda peer: False)
    assert len(caught.value.details["candidates"]) == 5  # type: ignore[attr-defined]


async def _take_many(node: Node, seeds: range, each: int) -> None:
    ends = int(time.time()) + 3_600
    for seed in seeds:
        for number in range(each):
            envelope = seal_record(key_of(seed), card(name=f"m{number}", model=seed, label=f"l{seed}", expires=ends))
            node.membership._archive.take(envelope, time.time(), lambda _peer: False)


async def test_two_that_are_far_apart_come_together_though_one_answer_holds_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A joiner with nothing, and later two that each have what the other lacks: more than one question's marks, more than a push takes."""
    monkeypatch.setattr(exchange, "MAX_MARKS", 120)
    monkeypatch.setattr(exchange, "_PUSHED_AT_ONCE", 30)
    async with Nodes() as nodes:
        full = await nodes.node()
        await _take_many(full, range(100, 106), 100)
        empty = await nodes.node()
        await empty.membership.join(full.membership.ticket())
        await _until(lambda: len(empty.membership.cards()) == 600)
        await _take_many(full, range(200, 202), 75)
        await _take_many(empty, range(300, 302), 75)
        await _until(lambda: len(empty.membership.cards()) == len(full.membership.cards()) == 900)
        assert full.peer in {view.peer for view in empty.membership.peers() if view.routable}, "nobody was cut off for pushing too much"
        sums = {node.membership._archive.sums(lambda kept: kept.record.__class__ is Card) for node in (full, empty)}
        assert len(sums) == 1


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(600):  # of the loop's own, quick time
        while not holds():  # noqa: ASYNC110 - it looks on at two nodes
            await asyncio.sleep(1)
