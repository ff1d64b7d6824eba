"""Who a request comes from, and what it may do. Pure values."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from protocol.errors import Forbidden
from protocol.tokens import SCOPES

EVERY_SCOPE = frozenset(SCOPES)
TIERS = ("free", "known", "contributor", "supporter", "unlimited")
"""`free`: not known to the owner, counted together with everybody of the same address. `known`: the same, counted alone."""
FREE, UNLIMITED = "free", "unlimited"


@dataclass(frozen=True)
class Caller:
    """`account` is the identity, an Ed25519 key, None for nobody in particular; `user` its id where this node is its home; `subject` what
    its allowance and usage are counted under; `key` the id of the key, session or token it came with; `models` None: any.
    """

    kind: str
    scopes: frozenset[str]
    subject: str
    tier: str
    account: bytes | None = None
    user: str | None = None
    name: str | None = None
    models: frozenset[str] | None = None
    key: bytes | None = None
    claimed: bool = False
    """Whether a credential was shown."""
    until: float | None = None
    """Unix seconds at which the API key behind it, or its token, ends; None: it doesn't, or it is a login's."""
    audience: str | None = None
    """Where alone the API key behind it is good."""
    home: str | None = None
    """PeerID of the account's home."""

    def need(self, scope: str) -> None:
        """`Forbidden` unless the credential has this scope."""
        if scope not in self.scopes:
            raise Forbidden(f"this needs the scope {scope}, which the credential doesn't have", hint="use a key with it")

    def may_use(self, *names: str | None) -> bool:
        """Whether a model known by any of these names is among those the credential is limited to."""
        return self.models is None or any(name in self.models for name in names if name)

    @property
    def who(self) -> str:
        """What usage and results are kept under: the identity, else the subject."""
        return self.account.hex() if self.account else self.subject


def address_subject(address: str) -> str:
    """One household, one subject: an IPv4 address, an IPv6 /64."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "address:unknown"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return f"address:{ip.ipv4_mapped}"
        return f"address:{ipaddress.ip_network((ip, 64), strict=False)}"
    return f"address:{ip}"


def subject_of(account: bytes, tier: str, address: str) -> str:
    """An identity that nobody vouches for shares its address's allowance: a thousand fresh keys get no more than one."""
    return address_subject(address) if tier == FREE else f"account:{account.hex()}"
