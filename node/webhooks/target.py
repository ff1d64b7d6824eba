"""Where a webhook may go. Pure.

A URL that a caller gives is fetched by this node from inside its owner's network: without a rule it would be a way to the router's page, to
services on loopback, to a cloud's metadata. So only public addresses are called, whatever the name says, unless the owner listed the
host. The check is made on the addresses of each single delivery and those are the ones connected to: a name that changes its mind
between check and use gains nothing. Redirects aren't followed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from protocol.errors import BadInput, Forbidden

MAX_URL = 2_048
_INSIDE = tuple(
    ipaddress.ip_network(text)
    for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "100.64.0.0/10", "192.88.99.0/24")
)
"""Beside what isn't global anyway: ways to write an IPv4 address within a v6 one, and shared address space."""


def check_url(url: str, allowed: Collection[str]) -> str:
    """The host of a URL that may be called; `BadInput` for what is none, `Forbidden` for a literal address that isn't public.

    `allowed`: hosts (`host` or `host:port`) that the owner listed.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput("url isn't a URL", details={"param": "url"}) from error
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or parts.scheme not in ("https", "http") or not host:
        raise BadInput(f"url is http or https, ASCII, at most {MAX_URL} characters", details={"param": "url"})
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise BadInput("url has neither a user nor a fragment", details={"param": "url"})
    if not is_allowed(host, port, allowed):
        literal = _literal(host)
        if literal is not None and not is_public(literal):
            raise Forbidden("webhooks go to public addresses alone", hint="the node's owner may list hosts in webhook_targets")
        if literal is None and _is_local_name(host):
            raise Forbidden("webhooks go to public names alone", hint="the node's owner may list hosts in webhook_targets")
    return host


def is_allowed(host: str, port: int | None, allowed: Collection[str]) -> bool:
    return host in allowed or (port is not None and f"{host}:{port}" in allowed)


def is_public(address: str) -> bool:
    """Whether an address, as resolved, is somebody's on the Internet: none of this machine's, its networks' or of a special kind."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if any(ip in network for network in _INSIDE if network.version == ip.version):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _literal(host: str) -> str | None:
    """The address that a host spells, also in the ways only some resolvers read (decimal, octal, hexadecimal); None for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.rstrip(".").split(".")
    numeric = all(label and (label.isdigit() or label.lower().startswith("0x")) for label in labels)
    return "0.0.0.0" if numeric and len(labels) <= 4 else None


def _is_local_name(host: str) -> bool:
    """A name that only means something here; what any other resolves to is looked at when it is called."""
    labels = host.rstrip(".").lower().split(".")
    return len(labels) < 2 or labels[-1] in ("localhost", "local", "internal")
