"""What a stage says of its steps: every row once, in order, cut and gathered as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.heard import MAX_ROWS
from node.statements import Statements
from node.step_log import LogRoom
from protocol import limits
from protocol.errors import BadInput
from protocol.messages import Checked, OpenSession, Sampling, StageSpec
from protocol.prints import PRINT_BYTES, Prints, open_prints, seal_prints, token_print
from runtime.fingerprint import SAME, Printer, compare, distances
from runtime.interface import UNCHECKED, Step, Stepped
from runtime.memory import TRAVELS
from runtime.trial import StageRows
from tests.protocol import vector_cases as cases

KEY = bytes(range(16))
HIDDEN = 8


def opening(index: int = 1, **changes: Any) -> OpenSession:
    stages = [StageSpec(cases.PEER, 0, 2), StageSpec(cases.PEER, 2, 4), StageSpec(cases.PEER, 4, 6)]
    fields: dict[str, Any] = {
        "session": bytes(16), "epoch": 0, "model": bytes(32), "stages": stages, "index": index, "entry": cases.PEER, "tokens_max": 9_999,
        "new_max": 1, "stop_tokens": [], "sampling": Sampling(), "precision": "fp32", "prints": KEY,
    }  # fmt: skip
    return OpenSession(**(fields | changes))


def statements(request: OpenSession) -> Statements:
    return Statements(request, request.stages[request.index], lambda prints: seal_prints(cases.KEY, prints))


def raw(start: int, count: int, salt: float = 0.0) -> bytes:
    """Rows that are unlike their neighbours."""
    rows = np.sin(2.4 * np.arange(start, start + count)[:, None] + np.linspace(0.5, 2 + salt, HIDDEN))
    return rows.astype("<f4").tobytes()


def said(made: Statements) -> list[Prints]:
    found: list[Prints] = []
    while envelopes := made.take():
        for envelope in envelopes:
            signer, prints = open_prints(envelope)
            assert signer == cases.PEER
            found.append(prints)
    return found


def feed(made: Statements, counts: Sequence[int]) -> int:
    position = 0
    for count in counts:
        step = Step(session="s", epoch=0, position=position, hidden=raw(position, count), count=count)
        made.add(step, Stepped(hidden=raw(position, count, 1.0)))
        position += count
    return position


@pytest.mark.parametrize(("precision", "travels"), TRAVELS.items())
def test_rows_are_printed_as_they_travel(precision: str, travels: str) -> None:
    """At 8 and 4 bits of weights what runs through is bf16."""
    rows = np.linspace(0.5, 2, 3 * HIDDEN, dtype="<f4")
    given = rows.tobytes() if travels == "fp32" else (rows.view("<u4") >> 16).astype("<u2").tobytes()
    made = statements(opening(precision=precision))
    made.add(Step(session="s", epoch=0, position=0, hidden=given, count=3), Stepped(hidden=given))
    (found,) = said(made)
    assert (found.precision, found.inputs) == (precision, Printer(KEY, HIDDEN).of(given, travels))
    assert compare(found.inputs * 8, (found.outputs or b"") * 8, precision).differs is False


@given(st.lists(st.one_of(st.just(1), st.integers(1, 3 * limits.MAX_PRINT_ROWS)), max_size=40))
def test_every_row_is_told_once_in_order(counts: list[int]) -> None:
    made = statements(opening())
    total = min(feed(made, counts), MAX_ROWS)
    found = said(made)
    assert [prints.position for prints in found] == [sum(prints.count for prints in found[:at]) for at in range(len(found))]
    assert sum(prints.count for prints in found) == total
    if total:
        printer = Printer(KEY, HIDDEN)
        # Not to the last bit: sums of many rows at once may be added up in another order. Rows differ by more than that.
        for told, wanted in (
            (b"".join(prints.inputs for prints in found), 0.0),
            (b"".join(prints.outputs or b"" for prints in found), 1.0),
        ):
            assert distances(told, printer.of(raw(0, total, wanted), "fp32")).max() < SAME


def test_single_tokens_share_a_signature() -> None:
    made = statements(opening())
    feed(made, [40] + [1] * 60)
    assert [prints.count for prints in said(made)] == [40, 60]


def test_a_first_stage_prints_its_tokens_a_last_one_has_gaps_and_no_rows() -> None:
    made = statements(opening(0))
    made.add(Step(session="s", epoch=0, position=3, tokens=[7, 8], count=2), Stepped(hidden=raw(0, 2)))
    [prints] = said(made)
    assert (prints.first, prints.end, prints.position) == (0, 2, 3)
    assert prints.inputs == token_print(KEY, 3, 7) + token_print(KEY, 4, 8)
    made = statements(opening(2))
    made.add(Step(session="s", epoch=0, position=0, hidden=raw(0, 2), count=2), Stepped(token=5, gaps=[0.0, 2.5]))
    [prints] = said(made)
    assert (prints.outputs, prints.gaps) == (None, [0.0, 2.5])
    assert len(prints.inputs) == 2 * PRINT_BYTES


def test_nothing_without_a_key_or_without_a_signer() -> None:
    for made in (statements(opening(prints=None)), Statements(opening(), opening().stages[1], None)):
        feed(made, [3, 1])
        assert made.take() == []


def test_what_was_given_after_each_row() -> None:
    made = statements(opening(2, check=Checked(4, [70, 71, 72])))
    assert made.given(0, 3) is None
    assert made.given(0, 8) == [UNCHECKED, UNCHECKED, UNCHECKED, 70, 71, 72, UNCHECKED, UNCHECKED]
    assert made.given(5, 1) == [72]
    assert made.given(6, 2) is None
    assert statements(opening(2)).given(0, 8) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"prints": bytes(15)},
        {"check": Checked(0, [1])},
        {"check": Checked(1, [-1])},
        {"check": Checked(1, [1 << 31])},
        {"check": Checked(1, [1] * (limits.MAX_CHECKED + 1))},
    ],
    ids=["key", "place", "token", "token too large", "MAX_CHECKED"],
)
def test_one_past(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="session"):
        statements(opening(2, **changes))


def test_rows_beyond_the_bound_are_left_out_and_the_others_still_true() -> None:
    row = 2 * 4 * HIDDEN
    room = LogRoom(10 * row)
    made, other = (Statements(opening(), opening().stages[1], lambda prints: seal_prints(cases.KEY, prints), room) for _ in range(2))
    feed(made, [8, 8, 1])
    feed(other, [2])
    assert [(prints.position, prints.count) for prints in said(made)] == [(0, 8), (16, 1)]
    assert said(other) == []
    feed(other, [9])
    other.drop()
    assert room.take(10 * row)


def test_rows_that_no_entry_looks_at_arent_kept() -> None:
    made = statements(opening())
    feed(made, [MAX_ROWS - 1, 5, 7])
    assert sum(prints.count for prints in said(made)) == MAX_ROWS


@given(st.lists(st.integers(1, 3 * limits.MAX_PRINT_ROWS), max_size=20), st.integers(0, 4_000))
def test_of_rows_beyond_where_a_session_goes_on_nothing_more_is_told(counts: list[int], position: int) -> None:
    room = LogRoom(1 << 30)
    made = Statements(opening(), opening().stages[1], lambda prints: seal_prints(cases.KEY, prints), room)
    rows = min(feed(made, counts), MAX_ROWS)
    made.truncate(position)
    told = [row for prints in said(made) for row in range(prints.position, prints.position + prints.count)]
    assert told == list(range(min(rows, position)))
    assert room.take(1 << 30), "what was given up takes no room"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_a_last_stage_signs_the_token_after_each_row_whatever_was_guessed(rights: list[int]) -> None:
    """Each step has the newest token and five guesses, of which so many are right: rows beyond are said again."""
    made, tokens, position = statements(opening(2)), list(range(100, 400)), 0
    for right in rights:
        step = Step(session="s", epoch=0, position=position, hidden=raw(position, 6), count=6, guessed=5)
        made.add(step, Stepped(token=tokens[position + 1], more=tokens[position + 2 : position + 2 + right] or None))
        position += 1 + right
    rows = StageRows()
    for prints in said(made):
        rows.take(prints)
    assert rows.given == {row: token_print(KEY, row + 1, tokens[row + 1]) for row in range(position)}


def test_in_an_audit_it_signs_those_it_was_given_to_check() -> None:
    made = statements(opening(2, check=Checked(4, [7, 8, 9])))
    step = Step(session="s", epoch=0, position=0, hidden=raw(0, 8), count=8, sample=True)
    step.check = made.given(0, 8)
    made.add(step, Stepped(token=55, gaps=[-1.0, -1.0, -1.0, 0.5, 2.0, 3.0, -1.0, -1.0]))
    [prints] = said(made)
    assert prints.given == b"".join(
        [bytes(32) * 3, *(token_print(KEY, position, token) for position, token in ((4, 7), (5, 8), (6, 9))), bytes(32) * 2]
    )
