"""The one string a person pastes to join: whom to dial, whom to trust, which private swarm.

`mft1…`, ≤ 2 KiB, signed by the node that made it. `swarm` is the private swarm's 32-byte secret: who holds it is a member.
A ticket is a secret; it is never logged.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record
from protocol.ids import PeerId, public_from_peer, ticket_payload, ticket_text
from protocol.signing import open_sealed, seal

DOMAIN = "mf/ticket/1"


class TicketPeer(Record):
    peer: str
    addresses: list[str]


class Ticket(Record):
    peers: list[TicketPeer]
    trusts: list[str]
    expires: int
    swarm: bytes | None = None


def seal_ticket(key: Ed25519PrivateKey, ticket: Ticket) -> str:
    text = ticket_text(seal(key, DOMAIN, ticket))
    if len(text) > limits.MAX_TICKET:
        raise BadInput(f"the ticket has {len(text)} characters, at most {limits.MAX_TICKET}", hint="fewer peers")
    return text


def parse_ticket(text: str, now: float) -> tuple[PeerId, Ticket]:
    """Issuer and checked ticket; `BadInput` says whether it is broken or expired."""
    text = text.strip()
    if len(text) > limits.MAX_TICKET:
        raise BadInput(f"broken ticket: {len(text)} characters, at most {limits.MAX_TICKET}")
    try:
        issuer, ticket = open_sealed(ticket_payload(text), DOMAIN, Ticket, limits.MAX_TICKET)
    except BadInput as error:
        said = error.message.removeprefix("broken ticket: ")
        raise BadInput(f"broken ticket: {said}", hint="paste the whole output of `mf-node ticket`") from error
    if ticket.expires < now - limits.CLOCK_TOLERANCE:
        raise BadInput("the ticket has expired", hint="ask a member for a new one (mf-node ticket)")
    if ticket.expires > now + limits.TICKET_LIFETIME + limits.CLOCK_TOLERANCE:
        raise BadInput("broken ticket: it expires later than tickets may")
    if not 1 <= len(ticket.peers) <= limits.MAX_TICKET_PEERS or len(ticket.trusts) > limits.MAX_TICKET_PEERS:
        raise BadInput("broken ticket: 1 to 8 peers, at most 8 trusted keys")
    for entry in ticket.peers:
        public_from_peer(entry.peer)
        if len(entry.addresses) > limits.MAX_ADDRESSES or any(len(a) > limits.MAX_ADDRESS for a in entry.addresses):
            raise BadInput("broken ticket: too many or too long addresses")
    for peer in ticket.trusts:
        public_from_peer(peer)
    if ticket.swarm is not None and len(ticket.swarm) != 32:
        raise BadInput("broken ticket: swarm has 32 bytes")
    return issuer, ticket
