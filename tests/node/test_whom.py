"""A PeerID or a label with its fingerprint names a key; a bare label, that anyone may use, names nobody."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.swarm.interface import CardView
from node.whom import shown, whom
from protocol.errors import BadInput, NotFound
from protocol.signing import peer_of
from tests.node.swarm.nodes import card

BOB, MALLORY = (CardView(peer_of(Ed25519PrivateKey.generate()), card("demo", label="bob")) for _ in range(2))


def test_a_peer_id_and_a_fingerprint_are_taken() -> None:
    assert whom(BOB.publisher, []) == BOB.publisher
    assert whom(shown(MALLORY), [BOB, MALLORY]) == MALLORY.publisher


def test_a_bare_label_lists_who_uses_it() -> None:
    for cards in ([BOB], [BOB, MALLORY]):
        with pytest.raises(NotFound) as caught:
            whom("bob", cards)
        assert caught.value.details["candidates"] == sorted(shown(view) for view in cards)


@pytest.mark.parametrize("text", ["alice", "", "12D3KooWnonsense", "bob~" + "a" * 500])
def test_others_are_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(BadInput, match="neither a PeerID nor a publisher") as caught:
        whom(text, [])
    assert "label~fingerprint" in str(caught.value.hint)
