"""The accounts put beside the swarm: what they ask of it, and where the homes of others answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.accounts import Accounts
from node.accounts.caller_rules import CallerRules
from node.accounts.credentials import home_mark
from node.accounts.journal import Journal
from node.http.access import Access
from node.http_setup import is_loopback
from node.stage_audit_report import StageAuditReport
from node.swarm.membership import Membership


def make_access(
    folder: Path,
    key: Ed25519PrivateKey,
    swarm: Membership,
    stage_audits: StageAuditReport,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
) -> Access:
    """`allow` and `deny`: callers, as the configuration has them."""
    homes, rules = Homes(swarm), CallerRules(folder, allow, deny)
    return Access(Accounts(folder, key, swarm), Journal(folder, key), homes.find, rules, stage_audits)


class Homes:
    """Nodes by their PeerID or its mark, as far as this node knows them."""

    def __init__(self, swarm: Membership) -> None:
        self._swarm = swarm

    def find(self, who: bytes | str) -> dict[str, Any]:
        """{"peer_id", "http": its API's URLs, "addresses"}; empty where it isn't known."""
        for view in self._swarm.peers():
            if who in (view.peer, home_mark(view.peer)):
                urls = (view.record.http if view.record else None) or []
                return {"peer_id": view.peer, "http": urls, "addresses": view.addresses}
        return {"peer_id": who} if isinstance(who, str) else {}


def announced_urls(scheme: str, host: str, port: int, others: Sequence[str]) -> list[str]:
    """The API's URLs for a NodeRecord: those another node could reach. `others` are the hosts that peers are told to dial."""
    every = host in ("0.0.0.0", "::", "")
    hosts = [one for one in others if every or not is_loopback(host) or is_loopback(one)] if every else [host]
    if not every and is_loopback(host) and not all(is_loopback(one) for one in others):
        return []
    return [f"{scheme}://[{one}]:{port}" if ":" in one else f"{scheme}://{one}:{port}" for one in dict.fromkeys(hosts)]
