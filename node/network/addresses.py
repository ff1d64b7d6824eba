"""Which addresses are dialled, and which are told to others. Pure except for asking the machine for its interfaces.

An address out of a record is dialled only if it is public or on a link this node is on: else a record could
point a thousand nodes at one machine of somebody's local network. A ticket's own addresses are always allowed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import psutil
from multiaddr import Multiaddr

from protocol import limits
from protocol.errors import BadInput

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def parse_address(text: str) -> tuple[str, int]:
    """(ip, port) of a multiaddr /ip4|ip6/…/tcp/… with or without /p2p; `BadInput` for anything else."""
    parts = text.split("/") if len(text) <= limits.MAX_ADDRESS else []
    if len(parts) not in (5, 7) or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        raise BadInput(f"not a usable address: {text[:96]!r}", hint="it looks like /ip4/127.0.0.1/tcp/4840")
    if len(parts) == 7 and parts[5] != "p2p":
        raise BadInput(f"not a usable address: {text[:96]!r}, only /p2p may follow the port")
    try:
        ip = ipaddress.IPv4Address(parts[2]) if parts[1] == "ip4" else ipaddress.IPv6Address(parts[2])
    except ValueError as error:
        raise BadInput(f"not a usable address: {text[:96]!r}: {error}") from error
    if not (parts[4].isascii() and parts[4].isdigit()) or int(parts[4]) > 65_535:
        raise BadInput(f"not a usable address: {text[:96]!r}: the port is 0 to 65535")
    return str(ip), int(parts[4])


def address_to_bytes(text: str) -> bytes:
    return bytes(Multiaddr(text).to_bytes())


def address_from_bytes(data: bytes) -> str:
    """The text of a binary multiaddr; `BadInput` unless it is one this node could dial."""
    if len(data) > limits.MAX_ADDRESS:
        raise BadInput(f"an address of {len(data)} bytes")
    try:
        text = str(Multiaddr(data))
    except Exception as error:  # boundary: multiaddr raises what its codecs raise, and the bytes are a stranger's
        raise BadInput(f"not a multiaddr: {error}") from error
    parse_address(text)
    return text.split("/p2p/")[0]


def check_address(address: str, links: Sequence[Network]) -> bool:
    """Whether an address out of a record may be dialled by a node on these links."""
    try:
        ip, port = parse_address(address)
    except BadInput:
        return False
    host = ipaddress.ip_address(ip)
    if port == 0 or host.is_multicast or host.is_unspecified:
        return False
    return host.is_global or any(host in link for link in links if link.version == host.version)


def links_of(listening: Iterable[str]) -> list[Network]:
    """The links this node is on: loopback when it listens there, and the networks of the interfaces it listens on."""
    hosts = {ipaddress.ip_address(parse_address(address)[0]) for address in listening}
    links: list[Network] = [link for link in _LOOPBACK if any(host in link for host in hosts if host.version == link.version)]
    for address, mask in _interfaces():
        if ipaddress.ip_address(address) in hosts and mask and not ipaddress.ip_address(address).is_loopback:
            links.append(ipaddress.ip_network(f"{address}/{_prefix(mask)}", strict=False))
    return links


def expand_listen(listening: Iterable[str]) -> list[str]:
    """What to tell others: an unspecified address becomes those of this machine's interfaces, loopback last."""
    out: list[str] = []
    for text in listening:
        ip, port = parse_address(text)
        host = ipaddress.ip_address(ip)
        found = [ip] if not host.is_unspecified else _own_addresses(host.version)
        out += [f"/ip{host.version if host.version == 6 else 4}/{one}/tcp/{port}" for one in found]
    return list(dict.fromkeys(out))[: limits.MAX_ADDRESSES]


def _own_addresses(version: int) -> list[str]:
    found = [address for address, _ in _interfaces() if ipaddress.ip_address(address).version == version]
    usable = [address for address in found if not ipaddress.ip_address(address).is_link_local]
    return sorted(usable, key=lambda address: ipaddress.ip_address(address).is_loopback)


def _interfaces() -> list[tuple[str, str]]:
    return [
        (entry.address.split("%")[0], entry.netmask or "")
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name in ("AF_INET", "AF_INET6")
    ]


def _prefix(mask: str) -> int:
    return int(ipaddress.ip_address(mask)).bit_count()
