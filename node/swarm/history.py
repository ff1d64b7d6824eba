"""Since when a peer has been known here, and how much of that time it was up. Pure; kept over restarts as part of the swarm's state.

Only time during which this node itself ran and watched is counted: a peer isn't away because we were. An identity is *new* for a
day. A node younger than a day can't tell who is new, since everybody is new to it: then nobody counts as new.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from protocol.ids import PeerId

DAY = 86_400.0
SURE_AFTER = 7 * DAY
"""Before it has been watched this long a peer's availability is unknown (design §5)."""
MAX_KNOWN = 4_096
LONGEST_LOOK = 300.0
"""Between two looks: a longer gap is this node's own sleep."""


class Known(msgspec.Struct, array_like=True):
    """Times in Unix seconds, `up` and `watched` in seconds."""

    peer: str
    since: float
    up: float = 0.0
    watched: float = 0.0
    seen: float = 0.0


@dataclass
class History:
    """`began` when this node first ran."""

    began: float
    _known: dict[str, Known]
    _looked: float | None = None

    @classmethod
    def restored(cls, began: float | None, known: Iterable[Known], now: float) -> History:
        """What a state file had; times from the future, by a clock that was set back, count as now."""
        entries = {entry.peer: msgspec.structs.replace(entry, since=min(entry.since, now)) for entry in known if _sane(entry)}
        return cls(min(began, now) if began is not None and began > 0 else now, entries)

    def look(self, routable: Iterable[PeerId], now: float) -> None:
        """Called about once a minute with who answers now."""
        passed = 0.0 if self._looked is None else min(LONGEST_LOOK, max(0.0, now - self._looked))
        self._looked = now
        up = set(routable)
        for entry in self._known.values():
            entry.watched += passed
            entry.up += passed if entry.peer in up else 0.0
        for peer in up:
            self._known.setdefault(peer, Known(peer, now)).seen = now
        if len(self._known) > MAX_KNOWN:
            kept = sorted(self._known.values(), key=lambda entry: entry.seen)[-MAX_KNOWN:]
            self._known = {entry.peer: entry for entry in kept}

    def new(self, peer: PeerId, now: float) -> bool:
        if now - self.began < DAY:
            return False
        entry = self._known.get(peer)
        return entry is None or now - entry.since < DAY

    def availability(self, peer: PeerId) -> float | None:
        """The share of the time watched that the peer was up; None until it has been watched for a week."""
        entry = self._known.get(peer)
        return entry.up / entry.watched if entry is not None and entry.watched >= SURE_AFTER else None

    def entries(self) -> list[Known]:
        return [msgspec.structs.replace(entry) for entry in self._known.values()]


def _sane(entry: Known) -> bool:
    return 0 <= entry.up <= entry.watched < 1e11 and entry.since >= 0
