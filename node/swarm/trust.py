"""Whose word this node takes: the owner's list, members of its private swarms, and publishers a ticket vouches for. Pure.

Vouched publishers are believed about names alone; they are not `trusted` with anything that leaves this node.
"""

from __future__ import annotations

from collections.abc import Iterable

from node.swarm.state import MAX_MEMBERS, SwarmState
from node.swarm.wire import MAX_SECRETS, Hello, prove, proves
from protocol.errors import BadInput
from protocol.ids import PeerId, public_from_peer
from protocol.records import Card
from protocol.ticket import Ticket

_MAX_LISTED = 4_096


class Trust:
    def __init__(self, own: PeerId, state: SwarmState) -> None:
        self._own = own
        self._secret = state.secret
        self._adopted = list(state.adopted)
        self._listed = dict.fromkeys(PeerId(peer) for peer in state.trusts)
        self._vouched = dict.fromkeys(PeerId(peer) for peer in state.vouched)
        self._members = dict.fromkeys(PeerId(peer) for peer in state.members)

    @property
    def secret(self) -> bytes:
        """What a new ticket hands on: the swarm joined last, else this node's own."""
        return self._adopted[-1] if self._adopted else self._secret

    def secrets(self) -> list[bytes]:
        return list(dict.fromkeys([self._secret, *self._adopted]))

    def hello(self, peer: PeerId, boot: bytes, version: str) -> Hello:
        return Hello(boot=boot, version=version[:64], proofs=[prove(secret, self._own, peer) for secret in self.secrets()])

    def greeted(self, peer: PeerId, hello: Hello) -> bool:
        """Checks a peer's proofs; True when it is a member and wasn't known as one."""
        if peer in self._members or not proves(self.secrets(), hello.proofs, peer, self._own):
            return False
        self._members[peer] = None
        while len(self._members) > MAX_MEMBERS:
            self._members.pop(next(iter(self._members)))
        return True

    def member(self, peer: PeerId) -> bool:
        return peer in self._members

    def trusted(self, peer: PeerId) -> bool:
        return peer == self._own or peer in self._members or peer in self._listed

    def believed(self, publisher: PeerId) -> bool:
        """Whether this publisher's cards give bare names."""
        return self.trusted(publisher) or publisher in self._vouched

    def allow(self, peer: PeerId) -> bool:
        """Adds to the owner's list; False when it was there. `BadInput` for what isn't a PeerID."""
        public_from_peer(peer)
        if peer in self._listed:
            return False
        if len(self._listed) >= _MAX_LISTED:
            raise BadInput(f"the allow-list has {_MAX_LISTED} entries, which is its most")
        self._listed[peer] = None
        return True

    def adopt(self, issuer: PeerId, ticket: Ticket) -> None:
        """Takes the ticket's secret beside our own, and its issuer's word on publishers."""
        if ticket.swarm is not None and ticket.swarm != self._secret:
            self._adopted = [secret for secret in self._adopted if secret != ticket.swarm] + [ticket.swarm]
            self._adopted = self._adopted[-(MAX_SECRETS - 1) :]
        for peer in [issuer, *map(PeerId, ticket.trusts)]:
            if peer != self._own:
                self._vouched[peer] = None
        while len(self._vouched) > MAX_MEMBERS:
            self._vouched.pop(next(iter(self._vouched)))

    def vouch_for(self, cards: Iterable[tuple[PeerId, Card]], most: int) -> list[PeerId]:
        """Publishers a new ticket names: those believed whose cards are known, the one with most cards first."""
        counts: dict[PeerId, int] = {}
        for publisher, _card in cards:
            if publisher != self._own and self.believed(publisher):
                counts[publisher] = counts.get(publisher, 0) + 1
        return sorted(counts, key=lambda peer: (-counts[peer], peer))[:most]

    def into(self, state: SwarmState) -> None:
        state.adopted = list(self._adopted)
        state.trusts = list(self._listed)
        state.vouched = list(self._vouched)
        state.members = list(self._members)
