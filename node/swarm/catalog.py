"""Names of models: cards by their publishers, and how a name becomes a model id (design §7, Names). Pure.

Anyone may sign a card with any label and any name, so a bare name is looked for only among the node's own cards, then
those of publishers it trusts. `label/name` names a publisher: one that is trusted comes first, else the
label must belong to one key; where it doesn't, the answer lists the names with fingerprints.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from node.swarm.book import Kept, Outcome, RecordBook
from node.swarm.shares import Groups
from protocol import limits
from protocol.errors import NotFound
from protocol.ids import ModelId, PeerId, fingerprint, model_from, public_from_peer
from protocol.records import Card

MAX_CARDS = 131_072
MAX_CARD_BYTES = 96 * limits.MIB
"""Of all cards as they travel: some 700 each where all places are taken. In memory they take about three times that."""
MAX_CARDS_PER_PUBLISHER = 256
MAX_BYTES_PER_PUBLISHER = 512 * limits.KIB
MAX_CANDIDATES = 5
_COMPARED, _LOOKED_THROUGH = 512, 16_384
"""Names compared by likeness, and searched for the text: difflib takes about 50 µs a name, a search 0.1, and the loop must not be held."""
_NAME = re.compile(
    r"(?:(?P<label>[A-Za-z0-9._-]+)(?:~(?P<print>[a-z2-7]+))?/)?(?P<name>[A-Za-z0-9._-]+)(?:@(?P<version>[A-Za-z0-9._-]+))?\Z"
)

Key = tuple[PeerId, str, str]
Trusted = Callable[[PeerId], bool]


class Catalog:
    def __init__(
        self,
        total: int = MAX_CARDS,
        per_publisher: int = MAX_CARDS_PER_PUBLISHER,
        most_bytes: int = MAX_CARD_BYTES,
        publisher_bytes: int = MAX_BYTES_PER_PUBLISHER,
    ) -> None:
        self._book: RecordBook[Key, Card] = RecordBook(total, per_publisher, most_bytes, publisher_bytes)
        self._names = Groups[str, Key]()
        self._models = Groups[bytes, Key]()

    def __len__(self) -> int:
        return len(self._book)

    @property
    def bytes(self) -> int:
        return self._book.bytes

    def offer(self, kept: Kept[Card], pinned: bool = False) -> tuple[Outcome, list[Kept[Card]]]:
        kept = _shared(kept)
        key = (kept.signer, kept.record.name, kept.record.version)
        outcome, gone = self._book.offer(key, kept, pinned)
        for old in gone:
            self._unindex(old)
        if outcome is Outcome.NEW:
            self._names.add(kept.record.name, key)
            if not kept.record.withdrawn:
                self._models.add(kept.record.model, key)
        return outcome, gone

    def get(self, publisher: PeerId, name: str, version: str) -> Kept[Card] | None:
        return self._book.get((publisher, name, version))

    def all(self) -> list[Kept[Card]]:
        """Also those withdrawn, which are kept and passed on as long."""
        return list(self._book)

    def live(self) -> list[Kept[Card]]:
        """Those that still name a model."""
        return [kept for kept in self._book if not kept.record.withdrawn]

    def of(self, publisher: PeerId) -> list[Kept[Card]]:
        """One publisher's, the withdrawn ones too."""
        return self._book.of(publisher)

    def publishers(self) -> list[PeerId]:
        return self._book.signers()

    def naming(self, model: ModelId) -> list[Kept[Card]]:
        """Those that name this model, by name and publisher."""
        found = self._live(self._models.of(model))
        return sorted(found, key=lambda kept: (kept.record.full_name(), kept.signer))

    def models(self) -> int:
        """How many models have a name."""
        return len(self._models)

    def expire(self, now: float) -> list[Kept[Card]]:
        gone = self._book.expire(now)
        for kept in gone:
            self._unindex(kept)
        return gone

    def _live(self, keys: Iterable[Key]) -> list[Kept[Card]]:
        found = [self._book.get(key) for key in keys]
        return [kept for kept in found if kept is not None and not kept.record.withdrawn]

    def _unindex(self, kept: Kept[Card]) -> None:
        key = (kept.signer, kept.record.name, kept.record.version)
        self._names.remove(kept.record.name, key)
        if not kept.record.withdrawn:
            self._models.remove(kept.record.model, key)

    def resolve(self, text: str, own: PeerId, trusted: Trusted) -> ModelId:
        """The model meant by `text`; `BadInput` for a broken model id, `NotFound` with candidates for the rest."""
        if text.startswith("mfm1"):
            return model_from(text)
        match = _NAME.match(text)
        if match is None:
            raise self._unknown(text, trusted)
        named = [kept for kept in self._live(self._names.of(match["name"])) if match["version"] in (None, kept.record.version)]
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
        wanted = _bare(text).lower()
        names = list(islice(self._names, _LOOKED_THROUGH))
        holding = [name for name in names if wanted and (wanted in name.lower() or name.lower() in wanted)][:_COMPARED]
        alike = difflib.get_close_matches(wanted, [name.lower() for name in names[:_COMPARED]], n=MAX_CANDIDATES, cutoff=0.5)
        near = [name for name in names[:_COMPARED] if name.lower() in alike]
        return list(dict.fromkeys([*self._shown(holding, trusted), *self._shown(near, trusted)]))[:MAX_CANDIDATES]

    def _shown(self, names: Iterable[str], trusted: Trusted) -> list[str]:
        cards = [kept for name in names for kept in self._live(self._names.of(name))][:_COMPARED]
        cards.sort(key=lambda kept: (not trusted(kept.signer), kept.record.full_name()))
        return list(dict.fromkeys(self.shown_name(kept) for kept in cards[: 4 * MAX_CANDIDATES]))

    def shown_name(self, kept: Kept[Card]) -> str:
        """`label/name@version`, with the key's fingerprint where another key has the same label."""
        card = kept.record
        keys = {other.signer for other in self._live(islice(self._names.of(card.name), _COMPARED)) if other.record.label == card.label}
        return exact_name(kept) if len(keys) > 1 else card.full_name()


def _shared(kept: Kept[Card]) -> Kept[Card]:
    """The same with those words that many cards have kept once for all."""
    card, summary = kept.record, kept.record.summary
    card.label, card.version = sys.intern(card.label), sys.intern(card.version)
    card.license = sys.intern(card.license) if card.license is not None else None
    summary.model_type = sys.intern(summary.model_type)
    summary.architecture = sys.intern(summary.architecture) if summary.architecture is not None else None
    return replace(kept, signer=PeerId(sys.intern(kept.signer)))


def exact_name(kept: Kept[Card]) -> str:
    card = kept.record
    return f"{card.label}~{fingerprint(public_from_peer(kept.signer))}/{card.name}@{card.version}"


def _bare(text: str) -> str:
    return text.rpartition("/")[2].partition("@")[0]


def _age(kept: Kept[Card]) -> tuple[int, int]:
    return kept.record.created, kept.record.sequence


def _published_by(kept: Kept[Card], label: str, prefix: str | None) -> bool:
    return kept.record.label == label and (prefix is None or fingerprint(public_from_peer(kept.signer)) == prefix)
