"""What a line of the owner's allow or deny list may be, and whom it means.

    192.0.2.7 · 10.0.0.0/8 · 2001:db8::/32    where a request comes from
    64 hexadecimal digits                     an account's key (`account` in GET /api/v1/users/me)
    a PeerID                                  a home: every account that is at home there

Names aren't among them: anybody can make a key whose eight-letter fingerprint is another's, given some days. Nothing but the standard
library here: the command line's help reads the configuration, and the configuration this.
"""

from __future__ import annotations

import ipaddress
import re

from protocol.errors import BadInput

_ACCOUNT = re.compile(r"[0-9a-f]{64}\Z")
_HOME = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")
_MAPPED = 96
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_entry(text: str, where: str = "caller") -> str:
    """The entry as it is kept; `BadInput` for what is none."""
    if _ACCOUNT.match(text.lower()):
        return text.lower()
    if _HOME.match(text):
        return text
    network = network_of(text) if len(text) <= 64 else None
    if network is None:
        raise BadInput(
            f"{where}: {text[:80]!r} is no caller",
            hint="give an address or network, an account's key (64 hexadecimal digits) or a home's PeerID",
            details={"param": "who"},
        )
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def network_of(entry: str) -> Network | None:
    """IPv4 addresses that are written mapped into IPv6 are themselves, as in requests."""
    try:
        found = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None
    mapped = found.network_address.ipv4_mapped if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= _MAPPED else None
    return found if mapped is None else ipaddress.ip_network((mapped, found.prefixlen - _MAPPED))


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A request's address; an IPv4 one that came mapped into IPv6 is itself."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
