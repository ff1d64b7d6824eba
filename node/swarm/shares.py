"""Who has how much of a book, who has most, and which records have something in common: kept up record by record, so that no question walks
through the book. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from protocol.ids import PeerId

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


@dataclass(slots=True)
class Share(Generic[K]):
    keys: dict[K, None] = field(default_factory=dict)
    bytes: int = 0

    @property
    def records(self) -> int:
        return len(self.keys)


class Shares(Generic[K]):
    def __init__(self) -> None:
        self.bytes = 0
        self._by_signer: dict[PeerId, Share[K]] = {}
        self._levels: dict[int, dict[PeerId, None]] = {}
        """Signers by how many records they have."""

    def share(self, signer: PeerId) -> Share[K]:
        return self._by_signer.get(signer) or Share()

    def of(self, signer: PeerId) -> list[K]:
        return list(self.share(signer).keys)

    def signers(self) -> list[PeerId]:
        return list(self._by_signer)

    def add(self, signer: PeerId, key: K, size: int) -> None:
        share = self._by_signer.setdefault(signer, Share())
        self._moves(signer, share.records, share.records + 1)
        share.keys[key] = None
        share.bytes += size
        self.bytes += size

    def remove(self, signer: PeerId, key: K, size: int) -> None:
        share = self._by_signer[signer]
        self._moves(signer, share.records, share.records - 1)
        del share.keys[key]
        share.bytes -= size
        self.bytes -= size
        if not share.keys:
            del self._by_signer[signer]

    def greatest(self, least: int) -> Iterator[K]:
        """Keys of those with most records first, down to who has `least`."""
        for level in sorted((level for level in self._levels if level >= least), reverse=True):
            for signer in self._levels[level]:
                yield from self._by_signer[signer].keys

    def _moves(self, signer: PeerId, before: int, after: int) -> None:
        if before:
            self._levels[before].pop(signer)
            if not self._levels[before]:
                del self._levels[before]
        if after:
            self._levels.setdefault(after, {})[signer] = None


class Groups(Generic[V, K]):
    """Keys by something they share. Most values have one key: it stands by itself, for a set of one is four times its size."""

    def __init__(self) -> None:
        self._found: dict[V, K | _Several[K]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[V]:
        return iter(self._found)

    def of(self, value: V) -> Iterator[K]:
        found = self._found.get(value)
        if isinstance(found, _Several):
            yield from found
        elif found is not None:
            yield found

    def add(self, value: V, key: K) -> None:
        found = self._found.get(value)
        if found is None or found == key:
            self._found[value] = key
        elif isinstance(found, _Several):
            found[key] = None
        else:
            self._found[value] = _Several({found: None, key: None})

    def remove(self, value: V, key: K) -> None:
        found = self._found.get(value)
        if isinstance(found, _Several):
            found.pop(key, None)
            if not found:
                del self._found[value]
        elif found == key:
            del self._found[value]


class _Several(dict[K, None]):
    """In the order they came."""
