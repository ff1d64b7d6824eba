"""Evidence of two runs that parted, made and read again: does it show what it says? Pure, and needs nothing but its bytes.

Whoever reads it goes the way of the audit once more (`runtime/trial.py`), by the signed statements alone: each must be its node's and of
these layers, what went in must agree, what came out must not, and who is blamed must be who the third leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from protocol import limits
from protocol.errors import BadInput
from protocol.prints import Prints, open_prints
from protocol.stage_evidence import ROLES, Said, StageEvidence
from runtime.fingerprint import compare_tokens
from runtime.trial import Parting, StageRows, agree_until, compare_rows, gaps_until, handover, same_inputs, third_says

WORDS = {Parting.HANDOVER: "handover", Parting.OUTPUTS: "outputs", Parting.TOKENS: "tokens"}
_AROUND = 4 * limits.KIB
"""Bytes left for the seal and the fields around the statements."""


def with_statements(evidence: StageEvidence, said: Mapping[str, tuple[str, Iterable[bytes]]]) -> StageEvidence:
    """The record with what was `said`: by role, who and its statements. Rows said again since are left out; so are the later or the earlier
    ones, where all are more than MAX_EVIDENCE and fewer show the same."""
    opened = {role: (said[role][0], _last_said(said[role][1])) for role in ROLES if role in said}
    smallest: list[Said] = []
    for start, end in _windows():
        parts = {role: (peer, _within(kept, start, end)) for role, (peer, kept) in opened.items()}
        evidence.said = [Said(role=role, peer=peer, statements=[one for _, one in part]) for role, (peer, part) in parts.items()]
        if sum(len(one) + 8 for said in evidence.said for one in said.statements) > limits.MAX_EVIDENCE - _AROUND:
            continue
        smallest = smallest or evidence.said
        if _unshown(evidence, {role: _merged(part, evidence.until) for role, (_, part) in parts.items()}) is None:
            return evidence
    evidence.said = smallest
    return evidence


def _windows() -> Iterable[tuple[int, int]]:
    """Rows to keep: all of them, then halves, quarters and so on."""
    most = 1 << 13
    yield 0, 1 << 31
    for parts in (2, 4, 8, 16, 32):
        size = most // parts
        yield from ((at, at + size) for at in range(0, most, size))


def _last_said(statements: Iterable[bytes]) -> list[tuple[Prints, bytes]]:
    """Those that have a row which no later one has, in their order."""
    kept: list[tuple[Prints, bytes]] = []
    covered: set[int] = set()
    for statement in reversed(list(statements)):
        prints = open_prints(statement)[1]
        rows = set(range(prints.position, prints.position + prints.count))
        if not rows <= covered:
            covered |= rows
            kept.append((prints, statement))
    return kept[::-1]


def _within(kept: Sequence[tuple[Prints, bytes]], start: int, end: int) -> list[tuple[Prints, bytes]]:
    return [one for one in kept if one[0].position < end and one[0].position + one[0].count > start]


def _merged(kept: Iterable[tuple[Prints, bytes]], until: int) -> StageRows:
    rows = StageRows()
    for prints, _ in kept:
        rows.take(prints)
    rows.end(until)
    return rows


def fault_of(evidence: StageEvidence) -> str | None:
    """Why the statements don't show what the record says, in words; None: they do."""
    try:
        sides = {said.role: _rows(evidence, said) for said in evidence.said}
    except BadInput as error:
        return error.message
    peers = [said.peer for said in evidence.said if said.role != "before"]
    if len(set(peers)) != len(peers):
        return "one node stands on two sides"
    return _unshown(evidence, sides)


def _rows(evidence: StageEvidence, said: Said) -> StageRows:
    rows, session = StageRows(), None
    for statement in said.statements:
        signer, prints = open_prints(statement)
        if signer != said.peer or (prints.model, prints.precision) != (evidence.model, evidence.precision):
            raise BadInput(f"a statement of {said.role} is another node's, or of another model or precision")
        if (prints.end != evidence.first) if said.role == "before" else ((prints.first, prints.end) != (evidence.first, evidence.end)):
            raise BadInput(f"a statement of {said.role} is of other layers")
        if session not in (None, prints.session):
            raise BadInput(f"statements of {said.role} are of two sessions")
        session = prints.session
        rows.take(prints)
    rows.end(evidence.until)
    return rows


def _unshown(evidence: StageEvidence, sides: Mapping[str, StageRows]) -> str | None:
    index = 0 if evidence.first == 0 else 1
    if evidence.parting == "handover":
        if "before" not in sides or "session" not in sides or handover(sides["before"].outputs, sides["session"].inputs) is None:
            return "what came out of the stage before is what went in"
        return None if evidence.wrong is None else "a hand-over blames nobody"
    if "session" not in sides or "again" not in sides:
        return "one of the two runs is missing"
    one, two = sides["session"], sides["again"]
    if not same_inputs(one.inputs, two.inputs, index, evidence.precision):
        return "other rows went in"
    if evidence.parting == "tokens" and (fault := _other_tokens(sides)) is not None:
        return fault
    limit = agree_until(one.inputs, two.inputs, index, evidence.precision)
    if evidence.parting == "outputs" and compare_rows(one.outputs, two.outputs, evidence.precision, limit).differs is not True:
        return "what came out doesn't differ"
    if evidence.parting == "tokens" and compare_tokens(gaps_until(two, limit)).differs is not True:
        return "the tokens aren't far behind"
    return _misjudged(evidence, sides, index)


def _other_tokens(sides: Mapping[str, StageRows]) -> str | None:
    """Whether those who checked tokens checked the ones that were given, as each signed; gaps of others are left out of `sides`."""
    mine = sides["session"].given
    if not mine:
        return "the stage didn't sign which tokens it gave"
    for role, rows in sides.items():
        if any(rows.given.get(row) != token for row, token in mine.items() if row in rows.gaps):
            return f"{role} checked other tokens than the stage signed"
        rows.gaps = {row: gap for row, gap in rows.gaps.items() if row in mine}
    return None


def _misjudged(evidence: StageEvidence, sides: Mapping[str, StageRows], index: int) -> str | None:
    what = next(parting for parting, word in WORDS.items() if word == evidence.parting)
    if "third" not in sides:
        return None if evidence.wrong is None else "no third decided who is blamed"
    alone = third_says((sides["session"], sides["again"]), sides["third"], index, what, evidence.precision)
    peers = {said.role: said.peer for said in evidence.said}
    if evidence.wrong != (None if alone is None else peers[("session", "again")[alone]]):
        return "the third's statements leave another one alone than who is blamed"
    return None
