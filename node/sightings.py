"""Who was seen to hold which shard, the away ones too. Pure.

The swarm's own books forget: a Holding lasts three hours, and only what answers is shown. Repair waits longer than that for a node
to come back, so it remembers: a holder that is away keeps its shards here until it is gone for good, one that answers holds
what it announces and no more. The memory outlives a restart (`saved`, `restored`): a node that has just come back must not take
everybody who is away for lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from erasure.presence import HERE, Presence
from protocol import limits
from protocol.framing import Record

MAX_KEPT = 4 * limits.MIB
"""Bytes of the saved memory."""


class Sighting(Record):
    """`away_since` in Unix seconds of a peer when it was saved, None while it answered; `shards`: [encoding, shard] it holds."""

    peer: str
    away_since: float | None
    shards: list[tuple[bytes, int]]


class Sightings:
    def __init__(self) -> None:
        self._held: dict[bytes, dict[int, set[str]]] = {}

    def see(self, encoding: bytes, announced: Mapping[int, Sequence[str]], presence: Presence, now: float) -> None:
        """What peers that answer announce of the encoding now."""
        held = self._held.setdefault(encoding, {})
        for shard in [*held]:
            held[shard] = {peer for peer in held[shard] if _awaited(peer, presence, now)}
        for shard, peers in announced.items():
            held.setdefault(shard, set()).update(peers)
        self._held[encoding] = {shard: peers for shard, peers in held.items() if peers}

    def holders(self, encoding: bytes) -> dict[int, list[str]]:
        return {shard: sorted(peers) for shard, peers in sorted(self._held.get(encoding, {}).items())}

    def keep_only(self, encodings: set[bytes]) -> None:
        """Of what lies here no more, nothing need be known."""
        self._held = {encoding: held for encoding, held in self._held.items() if encoding in encodings}

    def peers(self) -> set[str]:
        return {peer for held in self._held.values() for peers in held.values() for peer in peers}

    def saved(self, presence: Presence, now: float, unix: float) -> list[Sighting]:
        """`now` by the clock of `presence`, `unix` the same moment in Unix seconds."""
        shards: dict[str, list[tuple[bytes, int]]] = {}
        for encoding, held in self._held.items():
            for shard, peers in held.items():
                for peer in peers:
                    shards.setdefault(peer, []).append((encoding, shard))
        return [Sighting(peer=peer, away_since=_since(peer, presence, now, unix), shards=found) for peer, found in sorted(shards.items())]

    def restore(self, sightings: Sequence[Sighting], presence: Presence, now: float, unix: float) -> None:
        """All are away until they answer: those that answered when it was saved, since now."""
        for sighting in sightings:
            away = 0.0 if sighting.away_since is None else max(0.0, unix - sighting.away_since)
            presence.see(sighting.peer, False, now, since=now - away)
            for encoding, shard in sighting.shards:
                self._held.setdefault(encoding, {}).setdefault(shard, set()).add(sighting.peer)


def _awaited(peer: str, presence: Presence, now: float) -> bool:
    """Away, but not for twice as long as makes it gone."""
    absence = presence.absence(peer, now)
    return absence is not None and absence is not HERE and absence.seconds < 2 * absence.gone_after


def _since(peer: str, presence: Presence, now: float, unix: float) -> float | None:
    absence = presence.absence(peer, now)
    return None if absence is None or absence is HERE else unix - absence.seconds
