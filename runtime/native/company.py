"""Whether helpers are worth their company. Pure.

A helper that began a piece and lost its processor keeps everybody waiting. With many more threads about than processors that happens at
each phase, and a pass takes many times as long together as alone; where the node's own processes take a core now and then, it happens once
in a while, and together is faster still. It shows in time that the one who leads spent neither computing nor looking. Then a pass is made
alone, and from then on both are known: what takes longer on average is left, company for more passes each time it shows again.

Rejected: to leave company whenever it keeps one waiting (three stages on two cores, int4: a third of all passes were made alone, at one and
a half times what they took together, waits included).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

Kind = tuple[int, int]
"""Of passes that take about as long: the stage's plan, and how many rows, roughly."""
WAITED = 0.2
"""Share of a pass."""
MOST = 64
"""Passes made alone in a row."""
_NEW = 0.1
"""Weight of the latest."""
_KINDS = 64


@dataclass(slots=True)
class _Known:
    """Mean seconds of either; `left` passes to make alone, and how many it will be the `next` time."""

    together: float | None = None
    alone: float | None = None
    left: int = 0
    next: int = 1


class Company:
    def __init__(self) -> None:
        self._known: OrderedDict[Kind, _Known] = OrderedDict()

    def wanted(self, kind: Kind) -> bool:
        """For the next pass of this kind."""
        known = self._known.get(kind)
        if known is None or not known.left:
            return True
        known.left -= 1
        return False

    def alone(self, kind: Kind, seconds: float) -> None:
        """A pass without company took so long."""
        known = self._of(kind)
        known.alone = _mean(known.alone, seconds)

    def together(self, kind: Kind, seconds: float, own: float) -> None:
        """One in company did, `own` of it on the processor."""
        known = self._of(kind)
        known.together = _mean(known.together, seconds)
        if seconds - own <= WAITED * seconds or (known.alone is not None and known.together < known.alone):
            known.next = 1
            return
        known.left = known.next
        known.next = min(2 * known.next, MOST)

    def _of(self, kind: Kind) -> _Known:
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = _Known()
            if len(self._known) > _KINDS:
                self._known.popitem(last=False)
        return known


def _mean(before: float | None, new: float) -> float:
    return new if before is None else (1 - _NEW) * before + _NEW * new
