"""Who keeps which shard of a group.

At most one shard of a group per node, always; at most one per failure domain while the domains suffice, then as evenly over them
as it goes. Among the allowed, weighted rendezvous hashing decides: everybody who sees the same candidates computes the same
places, a node that leaves moves little but its own shards, and a node lending twice the storage gets about twice the shards.

A failure domain is what fails together: the /24 or /48 of a public address, the machine behind a private one, the node itself
on loopback. A label chosen by an operator can only merge domains: claiming another label must not make one machine look like two.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from protocol.errors import BadInput
from protocol.limits import MAX_SHARDS


@dataclass(frozen=True)
class Candidate:
    """`domain` from `domain_of`; `weight` e.g. bytes lent, 0 or less is never chosen; `operator` merges domains of one label."""

    peer: str
    domain: str
    weight: float = 1.0
    operator: str | None = None


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


def place(group_id: bytes, n: int, candidates: Sequence[Candidate], salt: bytes = b"") -> list[tuple[int, str]]:
    """(shard, peer) for shards 0 .. n-1 in order; fewer than n when there are fewer nodes."""
    if not 1 <= n <= MAX_SHARDS:
        raise BadInput(f"a group has 1 to {MAX_SHARDS} shards, not {n}")
    domains = merged_domains(candidates)
    free = {candidate.peer: candidate for candidate in candidates if candidate.weight > 0}
    used: Counter[str] = Counter()
    places: list[tuple[int, str]] = []
    for shard in range(min(n, len(free))):
        fewest = min(used[domains[peer]] for peer in free)
        allowed = [candidate for peer, candidate in free.items() if used[domains[peer]] == fewest]
        chosen = max(allowed, key=lambda candidate: (score(group_id, shard, candidate, salt), candidate.peer)).peer
        places.append((shard, chosen))
        used[domains[chosen]] += 1
        del free[chosen]
    return places


def score(group_id: bytes, shard: int, candidate: Candidate, salt: bytes = b"") -> float:
    """Weighted rendezvous: the highest takes the shard; chances are in proportion to weight."""
    hasher = blake3(b"mf/place/1")
    for field in (salt, group_id, shard.to_bytes(2, "big"), candidate.peer.encode()):
        hasher.update(len(field).to_bytes(2, "big"))
        hasher.update(field)
    drawn = (int.from_bytes(hasher.digest(length=7), "big") >> 3) + 0.5
    return candidate.weight / -math.log(drawn / 2**53)


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


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
