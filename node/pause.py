"""Where the seconds go when a reply loses a stage: from its last token to the first one after. Pure: `now` comes in.

`noticed` from the last token to the word that a stage is lost, `planned` until there is another route, `opened` until all of its stages
have their layers and room, `replayed` until they are where the reply was and the next token comes. A loss within a pause adds to the phase
in which it came.
"""

from __future__ import annotations

NOTICED, PLANNED, OPENED, REPLAYED = "noticed", "planned", "opened", "replayed"
_NEXT = {None: NOTICED, PLANNED: OPENED, OPENED: REPLAYED}


class Pause:
    """`lost`, `planned`, `opened` as each happens; `end` tells all and begins anew."""

    def __init__(self, now: float) -> None:
        self._last = now
        self._phase: str | None = None
        self._spent: dict[str, float] = {}
        self._lost = False

    def lost(self, now: float) -> None:
        self._add(_NEXT.get(self._phase, NOTICED), now)
        self._phase, self._lost = NOTICED, True

    def planned(self, now: float) -> None:
        self._add(PLANNED, now)
        self._phase = PLANNED

    def opened(self, now: float) -> None:
        self._add(OPENED, now)
        self._phase = OPENED

    def end(self, now: float) -> dict[str, float] | None:
        """A token came: seconds by phase where a stage was lost before it, else None."""
        self._add(REPLAYED, now)
        spent, lost = self._spent, self._lost
        self._spent, self._phase, self._lost = {}, None, False
        return spent if lost else None

    def _add(self, phase: str, now: float) -> None:
        self._spent[phase] = self._spent.get(phase, 0.0) + now - self._last
        self._last = now
