"""The swarm as the placement policy sees it now: one `Placement`, kept, and changed only where a peer has changed.

Measured figures are taken in coarse steps, so that a round trip a millisecond longer isn't another candidate. What this node can't
know stays None, which the policy counts as the middle: it is never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from erasure.placement import Candidate, Placement, domain_of, merged_domains
from node.swarm.interface import PeerView, Swarm
from protocol.ids import PeerId

Speed = Callable[[PeerId], float | None]
"""Bytes a second read from a peer lately, own measurement."""


class PlacementView:
    def __init__(self, me: Candidate, swarm: Swarm, speed: Speed = lambda peer: None) -> None:
        self.me = me
        self._swarm = swarm
        self._speed = speed
        self._placement = Placement([me])
        self._seen: dict[PeerId, tuple[object, Candidate]] = {}

    def tell_room(self, used: int, quota: int) -> None:
        """How full this node is itself."""
        self.me = replace(self.me, room=round(max(0.0, 1 - used / quota), 3) if quota else 0.0)

    def candidates(self) -> list[Candidate]:
        """This node and every routable peer that lends storage and isn't banned."""
        peers = [view for view in self._swarm.peers() if view.peer != self.me.peer]
        return [self.me, *(self._candidate(view) for view in peers if self._usable(view))]

    def domains(self) -> dict[str, str]:
        """The failure domain of this node and of every peer known, lending or not."""
        return merged_domains([self.me, *(self._candidate(view) for view in self._swarm.peers() if view.peer != self.me.peer)])

    def bearing(self) -> int:
        """How many nodes may hold a shard of one group now: of those that are new, one counts."""
        lending = [candidate for candidate in self.candidates() if candidate.weight > 0]
        old = sum(not candidate.new for candidate in lending)
        return old + min(1, len(lending) - old)

    def placement(self) -> Placement:
        """Of everybody known: who can't take a shard has no weight, its domain still counts."""
        views = [view for view in self._swarm.peers() if view.peer != self.me.peer]
        here = {view.peer for view in views}
        if self._placement.candidate(self.me.peer) != self.me:
            self._placement.join(self.me)
        for gone in [peer for peer in self._seen if peer not in here]:
            del self._seen[gone]
            self._placement.leave(gone)
        for view in views:
            candidate = self._candidate(view)
            usable = candidate if self._usable(view) else replace(candidate, weight=0.0)
            if self._placement.candidate(view.peer) != usable:
                self._placement.join(usable)
        return self._placement

    def _usable(self, view: PeerView) -> bool:
        lends = view.record is not None and view.record.lend in ("storage", "both")
        return lends and view.routable and not self._swarm.banned(view.peer)

    def _candidate(self, view: PeerView) -> Candidate:
        new = view.new and not self._swarm.trusted(view.peer)
        figures = (_two_digits(view.availability), _two_digits(view.distance), _two_digits(self._speed(view.peer)), new)
        mark = (None if view.record is None else view.record.sequence, id(view.record), tuple(view.addresses), figures)
        kept = self._seen.get(view.peer)
        if kept is None or kept[0] != mark:
            kept = self._seen[view.peer] = (mark, candidate_of(view, figures[2], new))
        return kept[1]


def candidate_of(view: PeerView, speed: float | None = None, new: bool = False) -> Candidate:
    """A peer as the placement policy sees it: what it lends by its own word, the rest as measured here."""
    record = view.record
    lent, free = (record.storage or record.storage_free or 0, record.storage_free or 0) if record else (0, 0)
    return Candidate(
        peer=view.peer,
        domain=domain_of(view.peer, ip_addresses(view.addresses), record.machine if record else None),
        weight=float(lent) if free else 0.0,
        operator=record.operator if record else None,
        room=round(min(1.0, free / record.storage), 3) if record and record.storage else None,
        reliability=_two_digits(view.availability),
        speed=_two_digits(speed),
        distance=_two_digits(view.distance if view.distance is not None else view.rtt),
        region=record.region if record else None,
        relayed=bool(view.addresses) and all("/p2p-circuit" in address for address in view.addresses),
        new=new,
    )


def ip_addresses(multiaddrs: Sequence[str]) -> list[str]:
    """The IP address of each /ip4/… or /ip6/… multiaddr."""
    split = [address.split("/") for address in multiaddrs]
    return [words[2] for words in split if len(words) > 2 and words[1] in ("ip4", "ip6")]


def _two_digits(value: float | None) -> float | None:
    """Measurements waver; a candidate shouldn't."""
    return None if value is None else float(f"{value:.1e}")
