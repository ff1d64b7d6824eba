"""Names of models: cards by their publishers, and how a name becomes a model id (design §7, Names). Pure.

Anyone may sign a card with any label and any name, so a bare name is looked for only among the node's own cards, then
those of publishers it trusts. `label/name` names a publisher: one that is trusted comes first, else the
label must belong to one key; where it doesn't, the answer lists the names with fingerprints.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from node.swarm.book import Kept, Outcome, RecordBook
from protocol.errors import NotFound
from protocol.ids import ModelId, PeerId, fingerprint, model_from, public_from_peer
from protocol.records import Card

MAX_CARDS = 8_192
MAX_CARDS_PER_PUBLISHER = 256
MAX_CANDIDATES = 5
_COMPARED = 512
"""Names compared by likeness: difflib takes about 50 µs a name and the loop must not be held."""
_NAME = re.compile(
    r"(?:(?P<label>[A-Za-z0-9._-]+)(?:~(?P<print>[a-z2-7]+))?/)?(?P<name>[A-Za-z0-9._-]+)(?:@(?P<version>[A-Za-z0-9._-]+))?\Z"
)

Key = tuple[PeerId, str, str]
Trusted = Callable[[PeerId], bool]


class Catalog:
    def __init__(self, total: int = MAX_CARDS, per_publisher: int = MAX_CARDS_PER_PUBLISHER) -> None:
        self._book: RecordBook[Key, Card] = RecordBook(total, per_publisher)

    def __len__(self) -> int:
        return len(self._book)

    def offer(self, kept: Kept[Card], pinned: bool = False) -> tuple[Outcome, list[Kept[Card]]]:
        return self._book.offer((kept.signer, kept.record.name, kept.record.version), kept, pinned)

    def get(self, publisher: PeerId, name: str, version: str) -> Kept[Card] | None:
        return self._book.get((publisher, name, version))

    def all(self) -> list[Kept[Card]]:
        """Also those withdrawn, which are kept and passed on as long."""
        return list(self._book)

    def live(self) -> list[Kept[Card]]:
        """Those that still name a model."""
        return [kept for kept in self._book if not kept.record.withdrawn]

    def expire(self, now: float) -> list[Kept[Card]]:
        return self._book.expire(now)

    def resolve(self, text: str, own: PeerId, trusted: Trusted) -> ModelId:
        """The model meant by `text`; `BadInput` for a broken model id, `NotFound` with candidates for the rest."""
        if text.startswith("mfm1"):
            return model_from(text)
        match = _NAME.match(text)
        if match is None:
            raise self._unknown(text, trusted)
        named = [kept for kept in self.live() if kept.record.name == match["name"] and match["version"] in (None, kept.record.version)]
        if match["label"]:
            named = [kept for kept in named if _published_by(kept, match["label"], match["print"])]
            circles = [[k for k in named if k.signer == own], [k for k in named if trusted(k.signer)], named]
        else:
            circles = [[k for k in named if k.signer == own], [k for k in named if trusted(k.signer)]]
        for circle in circles:
            if circle:
                return self._the_one(text, circle)
        raise self._unknown(text, trusted)

    def _the_one(self, text: str, cards: list[Kept[Card]]) -> ModelId:
        """The newest card of the only publisher, or of several that all mean the same model."""
        newest: dict[PeerId, Kept[Card]] = {}
        for kept in cards:
            best = newest.get(kept.signer)
            if best is None or _age(kept) > _age(best):
                newest[kept.signer] = kept
        models = {kept.record.model for kept in newest.values()}
        if len(models) == 1:
            return ModelId(models.pop())
        names = sorted(exact_name(kept) for kept in newest.values())[:MAX_CANDIDATES]
        raise NotFound(
            f"several publishers have a model named {text[:128]!r}",
            hint="say which: " + ", ".join(names),
            details={"candidates": names},
        )

    def _unknown(self, text: str, trusted: Trusted) -> NotFound:
        names = self._near(text[:256], trusted)
        hint = "near names: " + ", ".join(names) if names else "mf-node models lists what this node knows"
        return NotFound(f"no model is known by the name {text[:128]!r}", hint=hint, details={"candidates": names})

    def _near(self, text: str, trusted: Trusted) -> list[str]:
        """Names that hold the text or are like it; a stranger's card is named in full, trusted ones come first."""
        cards = sorted(self.live(), key=lambda kept: (not trusted(kept.signer), kept.record.full_name()))
        wanted = _bare(text).lower()
        shown: dict[str, str] = {}
        for kept in cards:
            shown.setdefault(self.shown_name(kept), kept.record.name.lower())
        holding = [full for full, bare in shown.items() if wanted and (wanted in bare or bare in wanted)]
        some = dict(list(shown.items())[:_COMPARED])
        alike = set(difflib.get_close_matches(wanted, list(dict.fromkeys(some.values())), n=MAX_CANDIDATES, cutoff=0.5))
        near = [full for full, bare in some.items() if bare in alike]
        return list(dict.fromkeys(holding + near))[:MAX_CANDIDATES]

    def shown_name(self, kept: Kept[Card]) -> str:
        """`label/name@version`, with the key's fingerprint where another key has the same label."""
        card = kept.record
        keys = {other.signer for other in self.live() if other.record.label == card.label and other.record.name == card.name}
        return exact_name(kept) if len(keys) > 1 else card.full_name()


def exact_name(kept: Kept[Card]) -> str:
    card = kept.record
    return f"{card.label}~{fingerprint(public_from_peer(kept.signer))}/{card.name}@{card.version}"


def _bare(text: str) -> str:
    return text.rpartition("/")[2].partition("@")[0]


def _age(kept: Kept[Card]) -> tuple[int, int]:
    return kept.record.created, kept.record.sequence


def _published_by(kept: Kept[Card], label: str, prefix: str | None) -> bool:
    return kept.record.label == label and (prefix is None or fingerprint(public_from_peer(kept.signer)) == prefix)
