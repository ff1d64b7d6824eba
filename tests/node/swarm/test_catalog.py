"""How a name becomes a model id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.swarm.book import Kept, mark_of
from node.swarm.catalog import Catalog, exact_name
from protocol.errors import BadInput, MfError, NotFound
from protocol.ids import ModelId, PeerId, fingerprint, model_text, public_from_peer
from protocol.records import Card, seal_record
from protocol.signing import peer_of
from tests.node.swarm.nodes import card, key_of, model_of

OWN, FRIEND, STRANGER, OTHER = (peer_of(key_of(seed)) for seed in (1, 2, 3, 4))
_SEEDS = {OWN: 1, FRIEND: 2, STRANGER: 3, OTHER: 4}


def trusted(peer: PeerId) -> bool:
    return peer in (OWN, FRIEND)


def kept(signer: PeerId, record: Card) -> Kept[Card]:
    envelope = seal_record(key_of(_SEEDS[signer]), record)
    return Kept(signer, record, envelope, mark_of(envelope))


def catalog(*cards: tuple[PeerId, Card]) -> Catalog:
    made = Catalog()
    for signer, record in cards:
        made.offer(kept(signer, record))
    return made


def resolve(made: Catalog, name: str) -> ModelId:
    return made.resolve(name, OWN, trusted)


def candidates(made: Catalog, name: str) -> list[str]:
    with pytest.raises(NotFound) as caught:
        resolve(made, name)
    found = caught.value.details["candidates"]
    assert isinstance(found, list)
    return found


def test_a_bare_name_means_ones_own_then_a_trusted_publishers() -> None:
    made = catalog((FRIEND, card(model=2, label="fred")), (STRANGER, card(model=3, label="sly")))
    assert resolve(made, "smol") == model_of(2)
    made.offer(kept(OWN, card(model=1, label="me")))
    assert resolve(made, "smol") == model_of(1)
    assert resolve(made, "fred/smol") == model_of(2)
    assert resolve(made, "sly/smol") == model_of(3)


def test_a_strangers_name_is_only_a_candidate() -> None:
    made = catalog((STRANGER, card(model=3, label="sly")))
    assert candidates(made, "smol") == ["sly/smol@1"]
    assert candidates(made, "smoll") == ["sly/smol@1"]
    assert candidates(made, "sly/smal") == ["sly/smol@1"]
    assert candidates(made, "entirely-else") == []


def test_versions_are_exact_or_the_newest() -> None:
    old, new = card(version="1", model=1, created=10), card(version="2", model=2, created=20)
    made = catalog((FRIEND, new), (FRIEND, old))
    assert resolve(made, "smol") == model_of(2)
    assert resolve(made, "smol@1") == model_of(1)
    assert resolve(made, "ann/smol@1") == model_of(1)
    assert candidates(made, "smol@3") == ["ann/smol@1", "ann/smol@2"]


def test_one_label_of_two_strangers_needs_the_fingerprint() -> None:
    made = catalog((STRANGER, card(model=3)), (OTHER, card(model=4)))
    names = candidates(made, "ann/smol")
    assert sorted(names) == sorted(exact_name(k) for k in made.all())
    assert {resolve(made, name) for name in names} == {model_of(3), model_of(4)}
    assert resolve(made, f"ann~{fingerprint(public_from_peer(OTHER))}/smol") == model_of(4)
    assert candidates(made, "ann~aaaaaaaa/smol") != []
    made.offer(kept(FRIEND, card(model=2)))
    assert resolve(made, "ann/smol") == model_of(2)


def test_two_trusted_publishers_of_the_same_model_agree() -> None:
    made = Catalog()
    made.offer(kept(FRIEND, card(model=5, label="a")))
    made.offer(kept(OTHER, card(model=5, label="b")))
    assert made.resolve("smol", OWN, lambda peer: True) == model_of(5)
    made.offer(kept(OTHER, card(model=6, label="b", sequence=2)))
    with pytest.raises(NotFound, match="several publishers"):
        made.resolve("smol", OWN, lambda peer: True)


def test_a_model_id_always_resolves_and_a_broken_one_says_so() -> None:
    assert resolve(Catalog(), model_text(model_of(7))) == model_of(7)
    with pytest.raises(BadInput, match="model id"):
        resolve(Catalog(), model_text(model_of(7))[:-3])


@given(st.text(max_size=60))
def test_any_text_resolves_or_says_what_is_near(text: str) -> None:
    made = catalog((FRIEND, card(model=2)), (STRANGER, card(model=3, name="other", label="sly")))
    try:
        found: object = resolve(made, text)
    except MfError as error:
        found = error
    if isinstance(found, NotFound):
        assert isinstance(found.details["candidates"], list)
    else:
        assert found in (model_of(2), model_of(3)) or text.startswith("mfm1")


@given(st.lists(st.tuples(st.sampled_from([FRIEND, STRANGER, OTHER]), st.sampled_from("ab"), st.integers(1, 3)), max_size=8))
def test_a_stranger_never_takes_a_bare_name(cards: list[tuple[PeerId, str, int]]) -> None:
    made = catalog(
        *((signer, card(model=_SEEDS[signer] * 10 + number, version=str(number), label=label)) for signer, label, number in cards)
    )
    theirs = {model_of(_SEEDS[FRIEND] * 10 + number) for number in (1, 2, 3)}
    try:
        assert resolve(made, "smol") in theirs
    except NotFound:
        assert all(signer != FRIEND for signer, _label, _number in cards)
