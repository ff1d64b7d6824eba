"""Where the time of a reply through stages goes: what each stage measured of itself, and what this node measured of the whole. Pure.

Each step carries the microseconds of the stages it has been through (`StepHead.spent`): how long each computed, and how long the step
waited for its turn there. The entry adds them up, and measures what no stage can: from the prompt's sending to its first token, and
from token to token; what the stages don't account for in the latter is the network. Clocks are compared nowhere, only durations.

A stage may write what it likes, so its figures stand beside its name and decide nothing. Who didn't tell (an older node, a stage beyond
the first MAX_TIMED_STAGES) is unknown; sums that are more than all the time that passed are no figures, and nobody's are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.gateway import StageTime
from protocol.ids import PeerId
from protocol.messages import StageSpec
from protocol.step_times import UNTOLD

LENIENT, TOLERANCE = 1.1, 0.25
"""By which share, and by how many seconds more, stages may seem to have taken longer than passed: tokens reach the entry unevenly."""
Observe = Callable[[str, float], None]
"""(part: compute, wait or network, seconds) of each stage or hop of a step."""


@dataclass
class _Sum:
    """Seconds of one stage; `gaps` where it should have told and didn't."""

    prefill: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    gaps: bool = False


class RouteTimes:
    """Of one reply over a route whose stages may change; `now` is any clock that only goes forward."""

    def __init__(self, observe: Observe = lambda _part, _seconds: None) -> None:
        self._observe = observe
        self._sums: dict[StageSpec, _Sum] = {}
        self._queue = self._prefill = self._decode = 0.0
        self._inside: float | None = 0.0
        self._begun = 0.0
        self._at: float | None = None
        self._waited: float | None = None

    def begin(self, now: float) -> None:
        """The prompt, or what is replayed of it and the reply, is sent from now on."""
        self._begun, self._at, self._waited = now, None, None

    def cut(self, stages: Sequence[StageSpec], spent: Sequence[int] | None) -> None:
        """A cut of the prompt went as far as it had to: through as many stages as it tells of."""
        self._prompt(stages[: len(spent or ()) // 2], spent)

    def token(self, stages: Sequence[StageSpec], spent: Sequence[int] | None, now: float) -> None:
        """A token came, or a few at once."""
        if self._at is None:
            self._prompt(stages, spent)
            passed = max(0.0, now - self._begun)
            waited = min(self._waited or 0.0, passed)
            self._queue += waited
            self._prefill += passed - waited
        else:
            took, inside = max(0.0, now - self._at), self._add(stages, spent, decode=True)
            self._decode += took
            self._inside = None if inside is None or self._inside is None else self._inside + sum(inside)
            if inside is not None:
                self._observe("network", max(0.0, took - sum(inside)) / max(1, len(stages)))
        self._at = now

    def timings(self) -> dict[str, float]:
        """Seconds: queue, prefill, decode as this node saw them, and `network` in decode where all stages told of theirs."""
        if not self._sums:
            return {}
        phases = {"queue": self._queue, "prefill": self._prefill, "decode": self._decode}
        if self._decode and self._inside is not None and self._sound():
            phases["network"] = max(0.0, self._decode - self._inside)
        return phases

    def stages(self, route: Sequence[StageSpec]) -> list[StageTime]:
        """Of each stage of `route` what it told."""
        sound = self._sound()
        return [_told(spec, self._sums.get(spec) if sound else None) for spec in route]

    def _prompt(self, stages: Sequence[StageSpec], spent: Sequence[int] | None) -> None:
        waits = self._add(stages, spent, decode=False) or []
        if self._waited is None:  # what comes later waits for what came before, not for others alone
            self._waited = sum(waits[1::2])

    def _add(self, stages: Sequence[StageSpec], spent: Sequence[int] | None, *, decode: bool) -> list[float] | None:
        """The seconds told, as they were told; None where a stage didn't."""
        told, found = list(spent or ()), list[float]()
        for index, spec in enumerate(stages):
            one, micros = self._sums.setdefault(spec, _Sum()), told[2 * index : 2 * index + 2]
            if len(micros) < 2 or UNTOLD in micros:
                one.gaps = True
                continue
            computed, waited = micros[0] / 1e6, micros[1] / 1e6
            found += [computed, waited]
            one.wait += waited
            if decode:
                one.decode += computed
            else:
                one.prefill += computed
            self._observe("compute", computed)
            self._observe("wait", waited)
        return found if len(found) == 2 * len(stages) else None

    def _sound(self) -> bool:
        passed = (self._queue + self._prefill + self._decode) * LENIENT + TOLERANCE
        whole = all(one.prefill + one.decode + one.wait <= passed for one in self._sums.values())
        return whole and (self._inside or 0.0) <= self._decode * LENIENT + TOLERANCE


def _told(spec: StageSpec, known: _Sum | None) -> StageTime:
    if known is None or known.gaps:
        return StageTime(PeerId(spec.peer), spec.first, spec.end)
    return StageTime(PeerId(spec.peer), spec.first, spec.end, known.prefill, known.decode, known.wait)
