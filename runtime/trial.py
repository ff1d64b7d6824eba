"""Two runs of the same text over other nodes: where they part, and who of two was right. Pure.

Stage by stage, in order. Each stage of each run said what went in and what came out, row by row. A stage whose inputs agree and whose
outputs don't has, in one of the runs, computed something else; stages after it then had other inputs, and nothing is said of them. What one
stage says came out and the next says went in are the same bytes, or one of the two lies and nobody can tell which: such a hand-over is
noted, never held against anybody. The last stage is known by its rows before the head, and by the tokens it gave: the other run says
how far they lie behind its own.

Which of two was right a third one decides, which runs the same stage: it agrees with one of them and not with the other, or
nothing is decided. Not decided either: models with experts, where honest machines send a row to other experts now and then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from runtime.fingerprint import Finding, compare, compare_tokens, same_rows


@dataclass
class StageRows:
    """What one stage of one run said: prints (32 bytes) by position; `gaps` of tokens where it was asked to check them."""

    inputs: dict[int, bytes] = field(default_factory=dict)
    outputs: dict[int, bytes] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)


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


def parting(run: Sequence[StageRows], again: Sequence[StageRows], precision: str) -> Difference | None:
    """The first stage at which the two differ; None: nowhere, or there isn't enough to say."""
    for index, (one, two) in enumerate(zip(run, again, strict=True)):
        if index and (wrong := _handover(run[index - 1].outputs, one.inputs)):
            return Difference(index, Parting.HANDOVER, wrong)
        if index and _handover(again[index - 1].outputs, two.inputs):
            return None  # the second run lies to itself: it is no witness
        if not _same_inputs(one.inputs, two.inputs, index, precision):
            return None
        outputs = _compare(one.outputs, two.outputs, precision)
        if outputs.differs:
            return Difference(index, Parting.OUTPUTS, outputs)
    tokens = compare_tokens(list(again[-1].gaps.values())) if again else None
    if tokens is not None and tokens.differs:
        return Difference(len(run) - 1, Parting.TOKENS, tokens)
    return None


def third_says(pair: tuple[StageRows, StageRows], third: StageRows, index: int, what: Parting, precision: str) -> int | None:
    """0 or 1: that one of the `pair` was wrong at stage `index`; None: undecided. The first gave the tokens, the others checked them."""
    if what is Parting.HANDOVER or not _same_inputs(pair[1].inputs, third.inputs, index, precision):
        return None
    if what is Parting.TOKENS:
        checked = compare_tokens(list(third.gaps.values())).differs
        return None if checked is None else 0 if checked else 1
    with_first, with_second = (_compare(one.outputs, third.outputs, precision).differs for one in pair)
    if with_first is True and with_second is False:
        return 0
    return 1 if with_first is False and with_second is True else None


def _compare(one: Mapping[int, bytes], two: Mapping[int, bytes], precision: str) -> Finding:
    rows = sorted(one.keys() & two.keys())
    return compare(b"".join(one[row] for row in rows), b"".join(two[row] for row in rows), precision)


def _handover(out: Mapping[int, bytes], into: Mapping[int, bytes]) -> Finding | None:
    rows = sorted(out.keys() & into.keys())
    found = same_rows(b"".join(out[row] for row in rows), b"".join(into[row] for row in rows))
    return found if found.differs else None


def _same_inputs(one: Mapping[int, bytes], two: Mapping[int, bytes], index: int, precision: str) -> bool:
    """Tokens are the same or not; rows may differ as honest machines do."""
    if index == 0:
        return all(one[row] == two[row] for row in one.keys() & two.keys())
    return _compare(one, two, precision).differs is not True
