"""Who takes a stage over, and who gets ready to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import StageSpec
from runtime.routing import Offer
from runtime.stand_by import stand_by

ROUTE = [StageSpec("a", 0, 4), StageSpec("b", 4, 8), StageSpec("c", 8, 12)]
SPARES = [Offer("x", 50, 0.1), Offer("y", 50, 0.2), Offer("z", 50, 0.3)]


def full(first: int, end: int) -> int:
    return 10 * (end - first) + 2


def weights(first: int, end: int) -> int:
    return 10 * (end - first)


def at(peer: str, stage: StageSpec) -> StageSpec:
    return StageSpec(peer, stage.first, stage.end)


def chosen(stage: StageSpec, offers: Sequence[Offer], *known: Sequence[StageSpec], ahead: bool = False) -> str | None:
    found = stand_by(stage, ROUTE, offers, full, weights, *known, ahead=ahead)
    assert found is None or (found.first, found.end) == (stage.first, stage.end)
    return found.peer if found is not None else None


def get_ready(offers: Sequence[Offer]) -> dict[int, str | None]:
    """For each stage of the route in turn, as an entry does ahead of any loss."""
    prepared: list[StageSpec] = []
    for stage in ROUTE:
        peer = chosen(stage, offers, prepared, ahead=True)
        prepared += [at(peer, stage)] if peer else []
    return {stage.first: next((one.peer for one in prepared if one.first == stage.first), None) for stage in ROUTE}


def test_each_stage_gets_a_stand_by_of_its_own() -> None:
    assert get_ready(SPARES) == {0: "x", 4: "y", 8: "z"}


def test_one_with_the_memory_stands_by_for_several() -> None:
    assert get_ready([Offer("x", 90, 0.1), *SPARES[1:2]]) == {0: "x", 4: "x", 8: "y"}


def test_what_is_ready_for_another_stage_isnt_given_up_ahead_of_a_loss_but_after_one() -> None:
    prepared = [at("x", ROUTE[0]), at("y", ROUTE[1])]
    assert chosen(ROUTE[2], SPARES[:2], prepared, ahead=True) is None
    assert chosen(ROUTE[2], SPARES[:2], prepared) == "x"
    assert chosen(ROUTE[2], SPARES, prepared) == "z", "who got ready for nothing comes first"
    assert chosen(ROUTE[1], SPARES, prepared) == "y"


@pytest.mark.parametrize("ahead", [False, True])
def test_the_same_one_is_chosen_again(ahead: bool) -> None:
    prepared = [at("z", ROUTE[0]), at("x", ROUTE[1]), at("y", ROUTE[2])]
    assert [chosen(stage, SPARES, prepared, ahead=ahead) for stage in ROUTE] == ["z", "x", "y"]


def test_who_runs_it_for_another_reply_comes_first_who_runs_something_else_late() -> None:
    assert chosen(ROUTE[0], SPARES, [at("x", ROUTE[0])], [at("z", ROUTE[0])]) == "z"
    assert chosen(ROUTE[0], SPARES, [at("x", ROUTE[0])], [at("x", ROUTE[1])]) == "y"


def test_of_several_that_run_it_the_one_that_most_replies_run_on() -> None:
    running = [at("y", ROUTE[0]), at("z", ROUTE[0]), at("z", ROUTE[0]), at("x", ROUTE[1])]
    assert chosen(ROUTE[0], SPARES, [], running) == "z"
    assert chosen(ROUTE[0], SPARES[:2], [at("x", ROUTE[0])], running) == "y"


def test_the_node_that_asks_is_spared() -> None:
    assert chosen(ROUTE[0], [Offer("me", 50, 0.0, here=True), *SPARES]) == "x"
    assert chosen(ROUTE[0], [Offer("me", 50, 0.0, here=True)]) == "me"


def test_then_the_most_of_the_model_then_the_nearest() -> None:
    assert chosen(ROUTE[0], [*SPARES, Offer("w", 50, 0.9, held=7)]) == "w"
    assert chosen(ROUTE[0], [Offer("x", 41), Offer("b", 50)]) is None, "no room, also beside a stage of the route"


@given(st.lists(st.integers(30, 140), max_size=5))
def test_nobody_gets_ready_for_more_than_its_memory_holds(memory: list[int]) -> None:
    offers = [Offer(f"n{number}", size) for number, size in enumerate(memory)]
    prepared = get_ready(offers)
    for offer in offers:
        mine = [stage for stage in ROUTE if prepared[stage.first] == offer.peer]
        assert not mine or sum(weights(one.first, one.end) for one in mine) + 2 <= offer.memory
