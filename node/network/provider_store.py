"""Who announced which key to this node. Pure: `now` and `rng` are arguments.

Bounds against floods: per key 20 records and two of a public /24 (/48), keys in all, announcements per sender and
minute. Where a bound is met newcomers replace at random (reservoir), so that whoever comes first can't hold the place.
"""

from __future__ import annotations

import ipaddress
import random
from collections import OrderedDict
from dataclasses import dataclass, field

from node.network.addresses import parse_address
from protocol.ids import PeerId
from protocol.limits import PROVIDER_LIFETIME

PER_KEY = 20
PER_SUBNET = 2
MAX_KEYS = 65_536
PER_MINUTE = 1_000
_MINUTE = 60.0


@dataclass
class Provider:
    peer: PeerId
    addresses: list[str]
    expires: float
    subnet: str | None


@dataclass
class _Entry:
    providers: dict[PeerId, Provider] = field(default_factory=dict)
    offered: int = 0
    offered_by_subnet: dict[str, int] = field(default_factory=dict)


def public_subnet(addresses: list[str]) -> str | None:
    """The /24 or /48 of the first public address, None without one."""
    for address in addresses:
        host = ipaddress.ip_address(parse_address(address)[0])
        if host.is_global:
            return str(ipaddress.ip_network(f"{host}/{24 if host.version == 4 else 48}", strict=False))
    return None


class ProviderStore:
    def __init__(self, rng: random.Random, max_keys: int = MAX_KEYS, per_minute: int = PER_MINUTE) -> None:
        self._rng = rng
        self._max_keys = max_keys
        self._per_minute = per_minute
        self._keys: OrderedDict[bytes, _Entry] = OrderedDict()
        self._rates: OrderedDict[PeerId, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes, peer: PeerId, addresses: list[str], now: float) -> bool:
        """Whether the record is kept. The caller has proven that `peer` itself sent it."""
        if not self._allowed(peer, now):
            return False
        entry = self._keys.setdefault(key, _Entry())
        self._keys.move_to_end(key)
        self._drop_expired(entry, now)
        provider = Provider(peer, addresses, now + PROVIDER_LIFETIME, public_subnet(addresses))
        kept = peer in entry.providers or self._make_room(entry, provider.subnet)
        if kept:
            entry.providers[peer] = provider
        while len(self._keys) > self._max_keys:
            self._keys.popitem(last=False)
        return kept

    def get(self, key: bytes, now: float, count: int = PER_KEY) -> list[Provider]:
        """A random sample of the living records."""
        entry = self._keys.get(key)
        if entry is None:
            return []
        self._drop_expired(entry, now)
        providers = list(entry.providers.values())
        return self._rng.sample(providers, min(count, len(providers)))

    def remove(self, key: bytes, peer: PeerId) -> None:
        entry = self._keys.get(key)
        if entry is not None:
            entry.providers.pop(peer, None)

    def expire(self, now: float) -> None:
        for key, entry in list(self._keys.items()):
            self._drop_expired(entry, now)
            if not entry.providers:
                del self._keys[key]

    def _allowed(self, peer: PeerId, now: float) -> bool:
        began, count = self._rates.get(peer, (now, 0))
        if now - began >= _MINUTE:
            began, count = now, 0
        self._rates[peer] = (began, count + 1)
        self._rates.move_to_end(peer)
        while len(self._rates) > self._max_keys:
            self._rates.popitem(last=False)
        return count < self._per_minute

    def _make_room(self, entry: _Entry, subnet: str | None) -> bool:
        """Whether a newcomer gets a place, its own or another's."""
        entry.offered += 1
        if subnet is not None:
            offered = entry.offered_by_subnet[subnet] = entry.offered_by_subnet.get(subnet, 0) + 1
            same = [provider for provider in entry.providers.values() if provider.subnet == subnet]
            if len(same) >= PER_SUBNET:
                return self._replace(entry, same, offered)
        if len(entry.providers) >= PER_KEY:
            return self._replace(entry, list(entry.providers.values()), entry.offered)
        return True

    def _replace(self, entry: _Entry, among: list[Provider], offered: int) -> bool:
        if self._rng.random() >= len(among) / offered:
            return False
        del entry.providers[self._rng.choice(among).peer]
        return True

    @staticmethod
    def _drop_expired(entry: _Entry, now: float) -> None:
        for provider in [provider for provider in entry.providers.values() if provider.expires <= now]:
            del entry.providers[provider.peer]
        if not entry.providers:
            entry.offered, entry.offered_by_subnet = 0, {}
