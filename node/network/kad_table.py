"""The routing table of our Kademlia: who is near which key. Pure: `now` and `rng` are arguments.

Contacts lie in buckets by the length of the prefix they share with our own position; a bucket holds at most k.
One miss makes a contact suspect (skipped by lookups), the second evicts it. `cap` bounds the whole table: then the
fullest bucket gives way, so that some contact remains at every distance.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import base58

from protocol.ids import PeerId

K = 20
_MISSES = 2


def position(key: bytes) -> int:
    """Where a key or a peer's id bytes lie in the space of distances, as js-libp2p has it."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def peer_bytes(peer: PeerId) -> bytes:
    return bytes(base58.b58decode(peer))


@dataclass
class Contact:
    peer: PeerId
    addresses: list[str]
    place: int
    seen: float
    misses: int = 0


class Table:
    def __init__(self, own: PeerId, rng: random.Random, k: int = K, cap: int | None = None) -> None:
        self._own = own
        self._place = position(peer_bytes(own))
        self._rng = rng
        self._k = k
        self._cap = cap
        self._buckets: dict[int, dict[PeerId, Contact]] = {}

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def get(self, peer: PeerId) -> Contact | None:
        return next((bucket[peer] for bucket in self._buckets.values() if peer in bucket), None)

    def contacts(self) -> list[Contact]:
        return [contact for bucket in self._buckets.values() for contact in bucket.values()]

    def suspects(self) -> list[Contact]:
        return [contact for contact in self.contacts() if contact.misses]

    def seen(self, peer: PeerId, addresses: list[str], now: float) -> None:
        """The peer answered, or spoke to us: it is fresh. New addresses replace the old ones unless empty."""
        if peer == self._own:
            return
        place = position(peer_bytes(peer))
        bucket = self._buckets.setdefault(256 - (place ^ self._place).bit_length(), {})
        known = bucket.get(peer)
        if known is not None:
            known.seen, known.misses, known.addresses = now, 0, addresses or known.addresses
        elif addresses:
            if len(bucket) >= self._k and not self._make_room(bucket):
                return
            bucket[peer] = Contact(peer, addresses, place, now)
            if self._cap is not None and len(self) > self._cap:
                self._make_room(max(self._buckets.values(), key=len), at_random=True)

    def _make_room(self, bucket: dict[PeerId, Contact], at_random: bool = False) -> bool:
        """A suspect goes first. A full bucket of living contacts keeps its old ones: they are likelier to stay."""
        gone = next((contact for contact in bucket.values() if contact.misses), None)
        if gone is None and at_random:
            gone = self._rng.choice(list(bucket.values()))
        if gone is None:
            return False
        del bucket[gone.peer]
        return True

    def missed(self, peer: PeerId) -> None:
        """The peer let a deadline pass."""
        for bucket in self._buckets.values():
            contact = bucket.get(peer)
            if contact is not None:
                contact.misses += 1
                if contact.misses >= _MISSES:
                    del bucket[peer]
                return

    def closest(self, place: int, count: int = K) -> list[Contact]:
        """The nearest contacts to a place that aren't suspect, nearest first."""
        trusted = [contact for contact in self.contacts() if not contact.misses]
        return sorted(trusted, key=lambda contact: contact.place ^ place)[:count]
