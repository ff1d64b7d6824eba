from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.durability import UNSEEN, choose_k_n, enough_durable, measured, shards_wanted, survives_each, survives_losses, unreadable
from protocol.errors import BadInput


@pytest.mark.parametrize(("nodes", "k", "n"), [(1, 1, 1), (2, 1, 2), (3, 2, 3), (4, 2, 4), (6, 2, 6), (11, 2, 6)])
def test_small_swarms_follow_the_rule(nodes: int, k: int, n: int) -> None:
    choice = choose_k_n(nodes)
    assert (choice.k, choice.n, choice.losses) == (k, n, n - k)


@settings(max_examples=40, deadline=None)
@given(st.integers(12, 400), st.floats(0.05, 0.999))
def test_never_worse_than_three_copies_and_under_the_cap(nodes: int, up: float) -> None:
    choice = choose_k_n(nodes, up)
    assert choice.n <= nodes
    assert choice.unreadable <= unreadable(1, 3, up) + 1e-12
    assert choice.n / choice.k <= 2.5 or (choice.k, choice.n) == (1, 3)


def test_more_nodes_and_better_nodes_are_safer() -> None:
    assert choose_k_n(60, 0.8).unreadable < choose_k_n(12, 0.8).unreadable
    assert choose_k_n(30, 0.95).unreadable < choose_k_n(30, 0.7).unreadable


def test_good_nodes_dont_waste_place() -> None:
    choice = choose_k_n(200, 0.999)
    assert choice.unreadable <= 1e-9
    assert choice.n / choice.k < 2


def test_where_few_are_up_copies_are_taken() -> None:
    choice = choose_k_n(40, 0.1)
    assert (choice.k, choice.n) == (1, 3)
    assert "3 copies" in choice.words


def test_words_say_what_is_reached() -> None:
    assert "any 4 of their nodes may go" in choose_k_n(6).words
    assert "nothing survives" in choose_k_n(1).words


def test_unreadable_is_the_binomial_tail() -> None:
    assert unreadable(1, 3, 0.8) == pytest.approx(0.008)
    assert unreadable(2, 3, 0.5) == pytest.approx(0.5)


def test_survives_losses_is_the_weakest_groups() -> None:
    assert survives_losses([{0, 1, 2, 3, 4, 5}, [1, 2, 5, 5]], 2) == 1
    assert survives_losses([{0, 1}, {3}], [1, 2]) == -1
    assert survives_losses([], 2) == 0


def test_enough_is_half_the_way() -> None:
    assert [enough_durable(2, 6), enough_durable(2, 3), enough_durable(1, 1), enough_durable(4, 7)] == [4, 3, 1, 6]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 11), st.floats(0.05, 0.999))
def test_a_small_swarm_is_never_worse_off_than_with_copies_of_the_same_cost(nodes: int, up: float) -> None:
    choice = choose_k_n(nodes, up)
    assert choice.n <= nodes
    assert choice.n <= 3 * choice.k
    assert choice.unreadable <= unreadable(1, choice.n // choice.k, up) + 1e-12


def test_six_nodes_that_are_hardly_up_keep_three_copies() -> None:
    assert (choose_k_n(6, 0.8).k, choose_k_n(6, 0.8).n) == (2, 6)
    assert (choose_k_n(6, 0.2).k, choose_k_n(6, 0.2).n) == (1, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.5, 1.0), min_size=4, max_size=9))
def test_the_binomial_is_an_upper_bound_for_nodes_that_differ(ups: list[float]) -> None:
    alive = [1.0]
    for up in ups:
        alive = [
            (alive[count] if count < len(alive) else 0.0) * (1 - up) + (alive[count - 1] if count else 0.0) * up
            for count in range(len(alive) + 1)
        ]
    mean = sum(ups) / len(ups)
    k = max(1, int(mean * len(ups)) - 1)
    assert sum(alive[:k]) <= unreadable(k, len(ups), mean) + 1e-12


def test_a_node_counts_as_measured_after_seven_days() -> None:
    day = 86_400.0
    assert measured(6 * day, 6.9 * day) == UNSEEN
    assert measured(3.5 * day, 7 * day) == 0.5
    with pytest.raises(BadInput):
        measured(2.0, 1.0)


def test_an_encoding_grows_where_nodes_are_up_less_than_was_thought() -> None:
    k, n = 20, 33  # chosen for nodes up 95 % of the time
    assert shards_wanted(k, n, 66, 200, 0.95) == n
    grown = shards_wanted(k, n, 66, 200, 0.8)
    assert n < grown <= 50
    assert unreadable(k, grown, 0.8) <= 1e-9
    assert shards_wanted(k, n, 36, 200, 0.8) == 36
    assert shards_wanted(k, n, 66, 35, 0.8) == 35
    assert shards_wanted(2, 3, 6, 6, 0.8) == 6
    with pytest.raises(BadInput):
        shards_wanted(4, 3, 6, 6)


def test_each_group_says_how_many_more_it_survives() -> None:
    assert survives_each([{0, 1, 2, 3}, [1, 1]], [2, 2]) == [2, -1]


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadInput):
        choose_k_n(0)
    with pytest.raises(BadInput):
        choose_k_n(20, [0.5, 1.5])
