"""Where two runs part, who was right, and what is never said."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from runtime.fingerprint import PRINT
from runtime.trial import Parting, StageRows, parting, third_says

ROWS = 60


def rows(seed: int, noise: float = 0.01, witness: int = 0) -> dict[int, bytes]:
    base = np.random.default_rng(seed).standard_normal((ROWS, PRINT))
    made = base + noise * np.random.default_rng(1000 * seed + witness).standard_normal((ROWS, PRINT))
    return {row: made[row].astype("<f2").tobytes() for row in range(ROWS)}


def tokens() -> dict[int, bytes]:
    return {row: bytes([row]) * 32 for row in range(ROWS)}


def run(witness: int, *, wrong_from: int | None = None, gap: float = 0.0) -> list[StageRows]:
    """Three stages; from `wrong_from` on all rows are others."""

    def out(stage: int) -> dict[int, bytes]:
        wrong = wrong_from is not None and stage >= wrong_from
        return rows(stage + (50 + witness if wrong else 1), witness=witness)

    first, second = out(0), out(1)
    gaps = dict.fromkeys(range(20, ROWS), gap)
    return [StageRows(tokens(), first), StageRows(dict(first), second), StageRows(dict(second), {}, gaps)]


def test_honest_runs_dont_part() -> None:
    assert parting(run(1), run(2), "bf16") is None


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("which", [0, 1])
def test_the_first_stage_that_differs_and_a_third_that_decides(stage: int, which: int) -> None:
    pair = [run(1), run(2)]
    pair[which] = run(which + 1, wrong_from=stage)
    found = parting(pair[0], pair[1], "bf16")
    assert found is not None
    assert (found.index, found.parting, found.finding.apart) == (stage, Parting.OUTPUTS, ROWS)
    third = run(3)[stage]
    assert third_says((pair[0][stage], pair[1][stage]), third, stage, found.parting, "bf16") == which


def test_a_third_that_agrees_with_neither_decides_nothing() -> None:
    pair = run(1, wrong_from=1), run(2)
    assert third_says((pair[0][1], pair[1][1]), run(3, wrong_from=1)[1], 1, Parting.OUTPUTS, "bf16") is None


def test_a_third_that_was_given_other_rows_is_no_witness() -> None:
    pair = run(1, wrong_from=1), run(2)
    astray = run(3)[1]
    astray.inputs = rows(77)
    assert third_says((pair[0][1], pair[1][1]), astray, 1, Parting.OUTPUTS, "bf16") is None
    assert third_says((run(1)[2], run(2)[2]), StageRows(rows(77), {}, dict.fromkeys(range(ROWS), 9.0)), 2, Parting.TOKENS, "bf16") is None


def test_a_hand_over_that_doesnt_fit_is_held_against_nobody() -> None:
    one = run(1)
    one[1].inputs[5] = rows(9)[5]
    found = parting(one, run(2), "bf16")
    assert found is not None
    assert (found.index, found.parting) == (1, Parting.HANDOVER)
    assert third_says((one[1], run(2)[1]), run(3)[1], 1, found.parting, "bf16") is None


def test_a_second_run_that_contradicts_itself_is_no_witness() -> None:
    other = run(2, wrong_from=1)
    other[1].inputs[5] = rows(9)[5]
    assert parting(run(1), other, "bf16") is None


def test_a_first_stage_that_was_given_other_tokens_isnt_compared() -> None:
    other = run(2, wrong_from=0)
    other[0].inputs[5] = bytes(32)
    assert parting(run(1), other, "bf16") is None


def test_wrong_tokens_are_the_last_stages() -> None:
    found = parting(run(1), run(2, gap=4.0), "bf16")
    assert found is not None
    assert (found.index, found.parting) == (2, Parting.TOKENS)
    pair = run(1)[2], run(2, gap=4.0)[2]
    assert third_says(pair, run(3, gap=3.9)[2], 2, found.parting, "bf16") == 0
    assert third_says(pair, run(3)[2], 2, found.parting, "bf16") == 1
    assert third_says(pair, StageRows(pair[1].inputs), 2, found.parting, "bf16") is None


def test_too_few_rows_say_nothing() -> None:
    few = [copy.deepcopy(run(1, wrong_from=0)), copy.deepcopy(run(2))]
    for stages in few:
        for stage in stages:
            stage.inputs = {row: stage.inputs[row] for row in range(3)}
            stage.outputs = {row: stage.outputs[row] for row in range(3) if stage.outputs}
    assert parting(few[0], few[1], "bf16") is None


def test_who_spoils_one_row_has_nobody_else_blamed() -> None:
    """The first row, which all later ones look at: what the next stages make of it differs everywhere, and is right."""
    spoiled, clean, third = run(1, wrong_from=1), run(2), run(3)
    odd = rows(77)[0]
    spoiled[0].outputs[0] = spoiled[1].inputs[0] = odd
    spoiled[2].gaps = {}
    clean[2].gaps = dict.fromkeys(range(20, ROWS), 5.0)
    assert parting(spoiled, clean, "bf16") is None
    for what in (Parting.OUTPUTS, Parting.TOKENS):
        third[1].gaps = clean[2].gaps
        assert third_says((spoiled[1], clean[1]), third[1], 1, what, "bf16") is None


def test_rows_before_a_spoiled_one_are_held_against_the_stage() -> None:
    pair = run(1, wrong_from=1), run(2)
    pair[0][0].outputs[50] = pair[0][1].inputs[50] = rows(77)[0]
    found = parting(pair[0], pair[1], "bf16")
    assert found is not None
    assert (found.index, found.finding.rows) == (1, 50)
    assert third_says((pair[0][1], pair[1][1]), run(3)[1], 1, found.parting, "bf16") == 0


def test_a_last_stage_isnt_blamed_for_tokens_where_nobody_says_what_went_into_it() -> None:
    first, second = run(1), run(2, gap=5.0)
    assert parting(first, second, "bf16") is not None
    first[2].inputs.clear()
    assert parting(first, second, "bf16") is not None, "the stage before it says what it was given"
    first[1].outputs.clear()
    assert parting(first, second, "bf16") is None


def test_what_came_over_another_route_isnt_this_ones_hand_over() -> None:
    first, second = run(1), run(2)
    for row in range(30):
        first[1].inputs[row] = rows(1, witness=9)[row]
    found = parting(first, second, "bf16")
    assert found is not None
    assert found.parting is Parting.HANDOVER
    assert parting(first, second, "bf16", [0, 30, 0]) is None
