"""Two runs of the same text over other nodes: where they part, and who of two was right. Pure.

Stage by stage, in order. Each stage of each run said what went in and what came out, row by row. A stage whose inputs agree and whose
outputs don't has, in one of the runs, computed something else; stages after it then had other inputs, and nothing is said of them. What one
stage says came out and the next says went in are the same bytes, or one of the two lies and nobody can tell which: such a hand-over is
noted, never held against anybody. A row is computed from all before it: one that went in otherwise, be it a single one of thousands, can
change every later one (the first, which all others look at, does). So rows after one that differs aren't compared at the stages it went
into: else a stage that spoils one row had the next one blamed. The last stage is known by its rows before the head, and by the tokens it
gave: the other run says how far they lie behind its own.

Which of two was right a third one decides, which runs the same stage: it agrees with one of them and not with the other, or
nothing is decided. Not decided either: models with experts, where honest machines send a row to other experts now and then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from protocol.prints import NO_TOKEN, PRINT_BYTES, Prints
from runtime.fingerprint import Finding, compare, compare_tokens, first_spoiled, same_rows

_ALL = 1 << 62


@dataclass
class StageRows:
    """What one stage of one run said: prints (32 bytes) by position; `gaps` of tokens where it was asked to check them;
    `given`: prints of the token after a row, by a last stage that gave or checked one."""

    inputs: dict[int, bytes] = field(default_factory=dict)
    outputs: dict[int, bytes] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)
    given: dict[int, bytes] = field(default_factory=dict)

    def take(self, prints: Prints) -> None:
        """Adds what one statement says; of a row said twice the later counts."""
        for at in range(prints.count):
            row, part = prints.position + at, slice(at * PRINT_BYTES, (at + 1) * PRINT_BYTES)
            self.inputs[row] = prints.inputs[part]
            if prints.outputs is not None:
                self.outputs[row] = prints.outputs[part]
            if prints.gaps is not None and prints.gaps[at] >= 0:
                self.gaps[row] = prints.gaps[at]
            if prints.given is not None and prints.given[part] != NO_TOKEN:
                self.given[row] = prints.given[part]

    def end(self, row: int) -> None:
        """Forgets it and all after it."""
        for side in (self.inputs, self.outputs, self.gaps, self.given):
            for later in [one for one in side if one >= row]:
                del side[later]

    def copy(self) -> StageRows:
        return StageRows(dict(self.inputs), dict(self.outputs), dict(self.gaps), dict(self.given))


class Parting(Enum):
    HANDOVER = "what a stage says came out isn't what the next says went in"
    OUTPUTS = "the same rows went in and others came out"
    TOKENS = "the tokens aren't those this model gives"


@dataclass(frozen=True)
class Difference:
    """At stage `index`, in the run itself or between the two."""

    index: int
    parting: Parting
    finding: Finding


def parting(run: Sequence[StageRows], again: Sequence[StageRows], precision: str, joints: Sequence[int] = ()) -> Difference | None:
    """The first stage at which the two differ; None: nowhere, or there isn't enough to say. `joints`: what went into a stage of
    the first run before its joint came from another one than that before it."""
    limit = _ALL
    for index, (one, two) in enumerate(zip(run, again, strict=True)):
        if index and (wrong := handover(run[index - 1].outputs, one.inputs, joints[index] if joints else 0)):
            return Difference(index, Parting.HANDOVER, wrong)
        if index and handover(again[index - 1].outputs, two.inputs):
            return None  # the second run lies to itself: it is no witness
        if not same_inputs(one.inputs, two.inputs, index, precision):
            return None
        limit = min(limit, agree_until(one.inputs, two.inputs, index, precision))
        outputs = compare_rows(one.outputs, two.outputs, precision, limit)
        if outputs.differs:
            return Difference(index, Parting.OUTPUTS, outputs)
        limit = min(limit, _first_spoiled(one.outputs, two.outputs, precision))
    return _tokens(run, again, limit) if again else None


def _tokens(run: Sequence[StageRows], again: Sequence[StageRows], limit: int) -> Difference | None:
    """Where it isn't known what went into the last stage nothing is said of its tokens."""
    told = run[-1].inputs or len(run) == 1 or run[-2].outputs
    gaps = gaps_until(again[-1], limit)
    found = compare_tokens(gaps) if told else None
    return Difference(len(run) - 1, Parting.TOKENS, found) if found is not None and found.differs else None


def third_says(pair: tuple[StageRows, StageRows], third: StageRows, index: int, what: Parting, precision: str) -> int | None:
    """0 or 1: that one of the `pair` was wrong at stage `index`; None: undecided. The first gave the tokens, the others checked them."""
    if what is Parting.HANDOVER or not same_inputs(pair[1].inputs, third.inputs, index, precision):
        return None
    limit = min(agree_until(one.inputs, third.inputs, index, precision) for one in pair)
    if what is Parting.TOKENS:
        checked = compare_tokens(gaps_until(third, limit)).differs
        return None if checked is None else 0 if checked else 1
    with_first, with_second = (compare_rows(one.outputs, third.outputs, precision, limit).differs for one in pair)
    if with_first is True and with_second is False:
        return 0
    return 1 if with_first is False and with_second is True else None


def compare_rows(one: Mapping[int, bytes], two: Mapping[int, bytes], precision: str, limit: int = _ALL) -> Finding:
    """Rows before `limit` that both have."""
    rows = sorted(row for row in one.keys() & two.keys() if row < limit)
    return compare(b"".join(one[row] for row in rows), b"".join(two[row] for row in rows), precision)


def gaps_until(rows: StageRows, limit: int) -> list[float]:
    """Of tokens that were made of rows before it."""
    return [gap for row, gap in rows.gaps.items() if row < limit]


def agree_until(one: Mapping[int, bytes], two: Mapping[int, bytes], index: int, precision: str) -> int:
    """The first row that went in otherwise."""
    if index == 0:
        return min((row for row in one.keys() & two.keys() if one[row] != two[row]), default=_ALL)
    return _first_spoiled(one, two, precision)


def _first_spoiled(one: Mapping[int, bytes], two: Mapping[int, bytes], precision: str) -> int:
    rows = sorted(one.keys() & two.keys())
    at = first_spoiled(b"".join(one[row] for row in rows), b"".join(two[row] for row in rows), precision)
    return _ALL if at is None else rows[at]


def handover(out: Mapping[int, bytes], into: Mapping[int, bytes], joint: int = 0) -> Finding | None:
    rows = sorted(row for row in out.keys() & into.keys() if row >= joint)
    found = same_rows(b"".join(out[row] for row in rows), b"".join(into[row] for row in rows))
    return found if found.differs else None


def same_inputs(one: Mapping[int, bytes], two: Mapping[int, bytes], index: int, precision: str) -> bool:
    """Tokens are the same or not; rows may differ as honest machines do."""
    if index == 0:
        return all(one[row] == two[row] for row in one.keys() & two.keys())
    return compare_rows(one, two, precision).differs is not True
