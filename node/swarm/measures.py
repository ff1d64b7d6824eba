"""What this node measures of others as time goes by: how far they are, how much of the time they answer, how long it has known them."""

from __future__ import annotations

import random
from collections.abc import Callable

from erasure.coordinates import WORST_ERROR, Coordinate, coordinate_from, moved
from node.swarm.archive import Archive
from node.swarm.history import History
from node.swarm.liveness import Liveness
from node.swarm.own import Facts
from protocol.ids import PeerId

LOOK = 60.0
"""Seconds between two looks at who answers."""


class Measures:
    """`now` is Unix seconds, `monotonic` any clock that only goes forward. `facts.coordinate` is where this node thinks it is."""

    def __init__(
        self,
        archive: Archive,
        liveness: Liveness,
        history: History,
        facts: Facts,
        rng: random.Random,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._archive, self._liveness, self._history, self._facts = archive, liveness, history, facts
        self._rng, self._now, self._monotonic = rng, now, monotonic
        self._looked: float | None = None

    def heard(self, peer: PeerId) -> None:
        """A round trip to the peer was measured."""
        pulse, there = self._liveness.pulse(peer), self._coordinate(peer)
        if pulse is not None and pulse.rtt is not None and there is not None:
            self._facts.coordinate = moved(self._facts.coordinate, there, pulse.rtt, self._rng)

    def look(self) -> None:
        """Notes who answers, once in LOOK seconds; called more often."""
        if self._looked is None or self._monotonic() - self._looked >= LOOK:
            self._looked = self._monotonic()
            known = (kept.signer for kept in self._archive.peers.all())
            self._history.look([peer for peer in known if self._liveness.routable(peer)], self._now())

    def availability(self, peer: PeerId) -> float | None:
        """The share of time it answered, None until that says something."""
        return self._history.availability(peer)

    def new(self, peer: PeerId) -> bool:
        """Whether this node has known it for less than a day."""
        return self._history.new(peer, self._now())

    def distance(self, peer: PeerId, rtt: float | None) -> float | None:
        """Seconds of round trip: as measured, else as both coordinates foretell; None where they don't know enough."""
        there = self._coordinate(peer)
        if rtt is not None or there is None:
            return rtt
        unsure = max(there.error, self._facts.coordinate.error) >= WORST_ERROR
        return None if unsure else self._facts.coordinate.distance(there)

    def _coordinate(self, peer: PeerId) -> Coordinate | None:
        """Where the peer says it is; one that doesn't know yet stands in the middle, unsure."""
        kept = self._archive.peers.get(peer)
        return None if kept is None else coordinate_from(kept.record.coordinate) if kept.record.coordinate else Coordinate()
