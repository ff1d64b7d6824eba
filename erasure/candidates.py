"""Nodes as the placement policy sees them: what they lend, how good they have been, and what fails together with them.

A failure domain is what fails together: the /24 or /48 of a public address, the machine behind a private one, the node itself
on loopback. A label chosen by an operator can only merge domains: claiming another label must not make one machine look like two.

How much a node should hold is in proportion to the bytes it lends, times its quality: the weighted mean of four shares between 0
and 1. Each is taken against a fixed reference, never against the other nodes: else every join would change everybody's weight and
move shards that had no need to move. What hasn't been measured counts as the middle, so that a node is neither rewarded nor
punished for being unknown.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from erasure.durability import UNSEEN
from protocol.errors import BadInput

MIDDLE = 0.5
MEDIUM_SPEED = 12.5e6
"""Bytes a second (100 Mbit/s) that count half."""
MEDIUM_DISTANCE = 0.1
"""Seconds of round trip that count half."""


@dataclass(frozen=True)
class Candidate:
    """`domain` from `domain_of`; `weight` e.g. bytes lent, 0 or less is never chosen; `operator` merges domains of one label.

    Measured, None where unknown: `room` the share of what is lent that is free, `reliability` the share of time up, `speed` bytes a
    second, `distance` seconds of round trip. `region` is its owner's label. `relayed`: reached only through relays; `new`: known for
    less than a day.
    """

    peer: str
    domain: str
    weight: float = 1.0
    operator: str | None = None
    room: float | None = None
    reliability: float | None = None
    speed: float | None = None
    distance: float | None = None
    region: str | None = None
    relayed: bool = False
    new: bool = False


@dataclass(frozen=True)
class Weights:
    """How much each share counts in a node's quality."""

    capacity: float = 0.3
    reliability: float = 0.3
    speed: float = 0.2
    distance: float = 0.2

    def __post_init__(self) -> None:
        shares = (self.capacity, self.reliability, self.speed, self.distance)
        if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise BadInput("placement weights are not negative, and not all 0")

    def worth(self, candidate: Candidate) -> float:
        """Bytes lent times quality; 0 for who is never chosen."""
        if candidate.weight <= 0:
            return 0.0
        room = MIDDLE if candidate.room is None else _share(candidate.room)
        up = UNSEEN if candidate.reliability is None else _share(candidate.reliability)
        speed = MIDDLE if candidate.speed is None else _share(candidate.speed / (candidate.speed + MEDIUM_SPEED))
        near = MIDDLE if candidate.distance is None else _share(MEDIUM_DISTANCE / (max(0.0, candidate.distance) + MEDIUM_DISTANCE))
        whole = self.capacity + self.reliability + self.speed + self.distance
        quality = (self.capacity * room + self.reliability * up + self.speed * speed + self.distance * near) / whole
        return candidate.weight * quality


def domain_of(peer: str, addresses: Iterable[str], machine: str | None = None) -> str:
    """The failure domain of a node reached at these IP addresses (text). Unreadable ones are passed over; a public one decides."""
    parsed = [address for text in addresses if (address := _address(text)) is not None]
    public = [address for address in parsed if address.is_global]
    if public:
        first = min(public, key=lambda address: (address.version, int(address)))
        return str(ipaddress.ip_network((first, 24 if first.version == 4 else 48), strict=False))
    private = [address for address in parsed if not address.is_loopback]
    if private:
        return f"machine {machine or min(map(str, private))}"
    return f"node {peer}"


def merged_domains(candidates: Iterable[Candidate]) -> dict[str, str]:
    """The domain of each peer once operators' labels have merged some."""
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    known = list(candidates)
    for candidate in known:
        domain = top(f"domain {candidate.domain}")
        if candidate.operator:
            parent[top(f"operator {candidate.operator}")] = domain
    return {candidate.peer: top(f"domain {candidate.domain}") for candidate in known}


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
