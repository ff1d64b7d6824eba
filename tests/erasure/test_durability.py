from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.durability import choose_k_n, enough_durable, survives_losses, unreadable
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


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadInput):
        choose_k_n(0)
    with pytest.raises(BadInput):
        choose_k_n(20, [0.5, 1.5])
