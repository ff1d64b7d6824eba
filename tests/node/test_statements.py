"""What a stage says of its steps: every row once, in order, cut and gathered as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.statements import Statements
from protocol import limits
from protocol.errors import BadInput
from protocol.messages import Checked, OpenSession, Sampling, StageSpec
from protocol.prints import PRINT_BYTES, Prints, open_prints, seal_prints, token_print
from runtime.fingerprint import Printer, compare
from runtime.interface import UNCHECKED, Step, Stepped
from runtime.memory import TRAVELS
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
    rows = np.arange(start, start + count, dtype="<f4")[:, None] + np.linspace(0.5, 2 + salt, HIDDEN, dtype="<f4")
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
    total = feed(made, counts)
    found = said(made)
    assert [prints.position for prints in found] == [sum(prints.count for prints in found[:at]) for at in range(len(found))]
    assert sum(prints.count for prints in found) == total
    if total:
        printer = Printer(KEY, HIDDEN)
        assert b"".join(prints.inputs for prints in found) == printer.of(raw(0, total), "fp32")
        assert b"".join(prints.outputs or b"" for prints in found) == printer.of(raw(0, total, 1.0), "fp32")


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
