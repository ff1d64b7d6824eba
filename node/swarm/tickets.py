"""A fresh ticket: this node, as many routable peers as fit, the publishers it believes, the swarm's secret. Pure."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.swarm.trust import Trust
from protocol import limits
from protocol.errors import BadInput
from protocol.ids import PeerId
from protocol.records import Card
from protocol.ticket import Ticket, TicketPeer, seal_ticket

_ADDRESSES = 3
_TRUSTS = 4

Reached = tuple[PeerId, list[str]]


def make_ticket(
    key: Ed25519PrivateKey, own: Reached, others: list[Reached], trust: Trust, cards: list[tuple[PeerId, Card]], now: float
) -> str:
    """`others` in order of preference; those that don't fit into 2 KiB are left out."""
    entries = [own, *others][: limits.MAX_TICKET_PEERS]
    trusts = trust.vouch_for(cards, _TRUSTS)
    while True:
        peers = [TicketPeer(peer=peer, addresses=addresses[:_ADDRESSES]) for peer, addresses in entries]
        ticket = Ticket(peers=peers, trusts=list(trusts), expires=int(now) + limits.TICKET_LIFETIME, swarm=trust.secret)
        try:
            return seal_ticket(key, ticket)
        except BadInput:
            if len(entries) == 1:
                raise
            entries.pop()
