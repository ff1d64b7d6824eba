"""Which addresses out of others' records this node may dial. Pure.

A record can name any address, so a lie could make the swarm knock at somebody's door or inside an owner's
own network. Dialled are public addresses and those on a link this node is on; a ticket's addresses come
from a person and aren't asked about here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def dialable(addresses: Sequence[str], own: Sequence[str]) -> list[str]:
    return [address for address in addresses if _may_dial(address, own)]


def _may_dial(address: str, own: Sequence[str]) -> bool:
    parts = address.split("/")
    if len(parts) < 3 or parts[0]:
        return False
    if parts[1] not in ("ip4", "ip6"):
        return parts[1] == "memory" and any(mine.startswith("/memory/") for mine in own)
    target = _host(address)
    if target is None or target.is_multicast or target.is_unspecified or target.is_reserved:
        return False
    return target.is_global or any(_same_link(target, mine) for mine in map(_host, own) if mine is not None)


def _host(address: str) -> Address | None:
    parts = address.split("/")
    try:
        return ipaddress.ip_address(parts[2]) if len(parts) > 2 and parts[1] in ("ip4", "ip6") else None
    except ValueError:
        return None


def _same_link(one: Address, other: Address) -> bool:
    """The interface's mask isn't known here: /24 for IPv4 and /64 for IPv6 are what home and office links have."""
    if one.version != other.version or one.is_loopback != other.is_loopback:
        return False
    if one.is_loopback:
        return True
    width = 24 if one.version == 4 else 64
    return other in ipaddress.ip_network(f"{one}/{width}", strict=False)
