"""Whom the owner means: a PeerID, or a publisher by the label on its cards, with the key's fingerprint where a label has several."""

from __future__ import annotations

from collections.abc import Sequence

from node.swarm.interface import CardView
from protocol.errors import BadInput, NotFound
from protocol.ids import PeerId, fingerprint, public_from_peer


def publisher(who: str, cards: Sequence[CardView]) -> PeerId:
    """The one key meant by a PeerID, `label` or `label~fingerprint`.

    `BadInput` lists the keys of an ambiguous label, since anyone may sign cards under any; `NotFound` for one nobody uses.
    """
    if _is_peer(who):
        return PeerId(who)
    label, _tilde, wanted = who.partition("~")
    keys = {view.publisher for view in cards if view.card.label == label}
    found = sorted(key for key in keys if not wanted or fingerprint(public_from_peer(key)) == wanted)
    if not found:
        known = sorted({view.card.label for view in cards})[:5]
        raise NotFound(
            f"no card known here has the publisher {who[:128]!r}", hint="give a PeerID, or a label as mf-node models shows it",
            details={"candidates": known},
        )  # fmt: skip
    if len(found) > 1:
        named = [f"{label}~{fingerprint(public_from_peer(key))} is {key}" for key in found]
        raise BadInput(f"{len(found)} keys publish as {label!r}: {'; '.join(named)}", hint="say which, by PeerID or label~fingerprint")
    return found[0]


def _is_peer(text: str) -> bool:
    try:
        public_from_peer(text)
    except BadInput:
        return False
    return True
