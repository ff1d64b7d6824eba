"""Whom the owner means by `trust PEER|PUBLISHER`.

Anyone may sign a card with any label, so a bare label names nobody: the answer lists who uses it, by fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.swarm.interface import CardView
from protocol.errors import BadInput, NotFound
from protocol.ids import PeerId, fingerprint, public_from_peer


def whom(text: str, cards: Sequence[CardView]) -> PeerId:
    """A PeerID as it stands, `label~fingerprint` of a card this node knows; else `NotFound` with candidates, or `BadInput`."""
    try:
        public_from_peer(text)
    except BadInput as error:
        named = {shown(view): view.publisher for view in cards}
        if text in named:
            return named[text]
        label = text.partition("~")[0]
        near = sorted(name for name in named if name.partition("~")[0] == label)
        if not near:
            hint = "give a PeerID (mf-node status --json) or a publisher as label~fingerprint"
            raise BadInput(f"{text[:96]!r} is neither a PeerID nor a publisher known here", hint=hint) from error
        message = f"{text[:96]!r} isn't one key: anyone may use that label"
        raise NotFound(message, hint="say which: " + ", ".join(near[:8]), details={"candidates": near[:8]}) from error
    return PeerId(text)


def shown(view: CardView) -> str:
    return f"{view.card.label}~{fingerprint(public_from_peer(view.publisher))}"
